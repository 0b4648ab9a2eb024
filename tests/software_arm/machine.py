"""An ARM processor in software, which runs one program on the memory of this process."""

from __future__ import annotations

import struct

import unicorn
from unicorn import arm64_const as registers

from . import mathematics
from .memory import Block, Ranges
from .program import Program

_STACK_BYTES = 4 << 20
_RETURN = 1 << 20
"""An address where there is nothing: functions return to it, and the emulator stops."""
_FLOATS_ON = 3 << 20
_FLOATS = (registers.UC_ARM64_REG_D0, registers.UC_ARM64_REG_D1)
_UNSHARED = (unicorn.UC_MEM_READ_UNMAPPED, unicorn.UC_MEM_WRITE_UNMAPPED)
_ACCESSES = {
    unicorn.UC_MEM_READ_UNMAPPED: "read where there is no memory",
    unicorn.UC_MEM_WRITE_UNMAPPED: "write where there is no memory",
    unicorn.UC_MEM_WRITE_PROT: "write to constant memory",
    unicorn.UC_MEM_FETCH_UNMAPPED: "jump to where there is no program",
}
_ARGUMENTS = tuple(getattr(registers, f"UC_ARM64_REG_X{number}") for number in range(8))


class MachineError(RuntimeError):
    """The program has done what a processor refuses: where, and what."""


class Machine:
    """Calls functions of a program, whose pointers are this process's own.

    Memory is shared page by page when the program first reads or writes it, and no longer than for one call.
    What this process could not read or write, the program can't either.
    """

    def __init__(self, program: Program) -> None:
        self._symbols = program.symbols
        self._stack = Block(_STACK_BYTES)
        self._shared: list[tuple[int, int]] = []
        self._ranges: Ranges | None = None
        self._refused = ""
        self._emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._emulator.ctl_set_cpu_model(registers.UC_CPU_ARM64_MAX)
        self._emulator.reg_write(registers.UC_ARM64_REG_CPACR_EL1, _FLOATS_ON)
        for segment in program.segments:
            self._emulator.mem_map(*segment.pages, segment.rights)
            self._emulator.mem_write(segment.address, segment.content)
        both = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
        self._emulator.mem_map_ptr(self._stack.address, self._stack.size, both, self._stack.address)
        self._emulator.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_fault)
        self._emulator.hook_add(unicorn.UC_HOOK_INTR, self._on_system_call)

    def call(self, name: str, *arguments: int) -> int:
        """What the function `name` returns, as 64 bits."""
        emulator = self._emulator
        for register, argument in zip(_ARGUMENTS, arguments, strict=False):
            emulator.reg_write(register, argument)
        emulator.reg_write(registers.UC_ARM64_REG_SP, self._stack.end)
        emulator.reg_write(registers.UC_ARM64_REG_LR, _RETURN)
        self._ranges, self._refused = None, ""
        try:
            emulator.emu_start(self._symbols[name], _RETURN)
        except unicorn.UcError as error:
            raise MachineError(f"{self._refused or error} at {self._place()}") from None
        finally:
            for address, size in self._shared:
                emulator.mem_unmap(address, size)
            self._shared.clear()
        return emulator.reg_read(registers.UC_ARM64_REG_X0)

    def text(self, address: int) -> bytes:
        """A zero-terminated string of the program's."""
        return bytes(self._emulator.mem_read(address, 64)).partition(b"\0")[0]

    def _on_fault(self, _emulator, access, address, size, _value, _data) -> bool:
        """Share what the program asks for. False: it may not have it."""
        self._ranges = self._ranges or Ranges()
        found = self._ranges.around(address)
        if access not in _UNSHARED or found is None:
            self._refused = f"{_ACCESSES.get(access, 'no access')} of {size} bytes at {address:#x}"
            return False
        start, end, rights = found
        self._emulator.mem_map_ptr(start, end - start, rights, start)
        self._shared.append((start, end - start))
        return True

    def _on_system_call(self, _emulator, _number, _data) -> None:
        """The program calls a function of `mathematics`."""
        here = self._emulator.reg_read(registers.UC_ARM64_REG_PC)
        (call,) = struct.unpack("<I", self._emulator.mem_read(here - 4, 4))
        function, number = mathematics.function(call >> 5 & 0xFFFF)
        x, y = (
            number.from_buffer_copy(self._emulator.reg_read(register).to_bytes(8, "little"))
            for register in _FLOATS
        )
        result = bytes(number(function(x, y))).ljust(8, b"\0")
        self._emulator.reg_write(_FLOATS[0], int.from_bytes(result, "little"))

    def _place(self) -> str:
        """The function that the processor is in."""
        here = self._emulator.reg_read(registers.UC_ARM64_REG_PC)
        name = max((address, name) for name, address in self._symbols.items() if address <= here)[1]
        return f"{name}+{here - self._symbols[name]:#x}"
