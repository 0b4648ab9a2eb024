"""The same Metal source on an NVIDIA GPU: translation to PTX, and what ptxas says of the result.

A simdgroup is a warp. The 8x8 matrix product has two translations that compute it: "exact" (shuffles and
float multiply-adds) and "tensor" (tensor cores). The one has the numerics of the CPU engine; the other shows
the rest of a kernel. Both take registers of their own. A third one, "registers", takes those that the product
has on Apple's GPUs and computes nothing: with it, ptxas says how many registers the kernel needs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import clang
from .compiler import front_end
from .diagnostics import Diagnostic, MetalCompileError
from .signatures import MAX_THREADS, Kernel
from .source import PreparedSource, prepare
from .tables import parameters

MODES = ("exact", "tensor")
REGISTERS = "registers"
_REGISTERS_OF_MULTIPROCESSOR = 64 * 1024
_LIMITS_TRIED = 16
_RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of the GPU, a thread; shared_bytes is the static threadgroup memory."""

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int


def to_ptx(path: Path, mode: str = "exact", constants: Mapping[str, bool | int | float] | None = None,
           include: Sequence[Path] = (), architecture: str = "sm_90",
           registers: int | None = None) -> str:  # fmt: skip
    """Translates a file. Function constants need values here: PTX is compiled with them.

    Each kernel becomes an entry of its name. Its parameters are a 64-bit pointer for each buffer, in order of
    index, then a 32-bit byte offset into dynamic shared memory for each threadgroup argument. In the place of
    a pointer to constant memory may stand the bytes themselves. A thread takes `registers` at most, and, of a
    kernel that says how many threads it has, no more than let a multiprocessor run two threadgroups.
    """
    if mode not in (*MODES, REGISTERS):
        raise ValueError(f"mode is '{mode}'; there are {', '.join(MODES)} and {REGISTERS}")
    source = prepare(path, constants or {}, tuple(include))
    missing = [c.name for c in source.function_constants]
    if missing:
        raise ValueError(f"these function constants need a value: {', '.join(missing)}")
    target = ["-target", "nvptx64-nvidia-cuda", f"-march={architecture}", "-nogpulib"]
    target += ["-Xclang", "-target-feature", "-Xclang", "+ptx80"]
    with tempfile.TemporaryDirectory(prefix="software_mac-") as work:
        defines = [] if mode == "exact" else [f"-DMSL_{mode.upper()}"]
        text, _ = front_end(source, _entries(source), [*target, *defines, "-O2"], Path(work))
        module, out = Path(work) / "module.ll", Path(work) / "module.ptx"
        module.write_text(_inlined(_constant_memory_to_device_memory(text)))
        clang.run("clang", [*target, "-x", "ir", "-O2", "-w", "-S", str(module), "-o", str(out)])
        ptx = out.read_text() if mode == "exact" else _by_value(out.read_text(), source)
    absent = sorted(set(re.findall(r"msl_no_instruction_(\w+)", ptx)))
    if absent:
        raise MetalCompileError(
            [Diagnostic("error", str(path), 1, f"PTX has no instruction for {', '.join(absent)}")]
        )
    return ptx if registers is None else _limited(ptx, source, registers)


def resources(
    ptx: str, architecture: str = "sm_90", registers: int | None = None
) -> dict[str, Resources] | None:
    """Registers, spills and shared memory of each kernel; None where there is no ptxas.

    With `registers`, of a kernel compiled for at most so many. ptxas fills what it may take with early loads,
    and then spills a value or two that fewer registers have room for; so lower limits are tried too, and the
    first one without spills counts. If all spill, the limit itself.
    """
    ptxas = shutil.which("ptxas") or shutil.which("/usr/local/cuda/bin/ptxas")
    if ptxas is None:
        return None
    with tempfile.TemporaryDirectory(prefix="software_mac-") as work:
        source = Path(work) / "module.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={architecture}", str(source), "-o", str(Path(work) / "module.cubin")]
        if registers is None:
            return _taken(command)
        taken: dict[str, Resources] = {}
        for limit in range(registers, registers - _LIMITS_TRIED, -1):
            for name, used in _taken([*command, f"--maxrregcount={limit}"]).items():
                if name not in taken or (taken[name].stack_bytes and not used.stack_bytes):
                    taken[name] = used
            if not any(used.stack_bytes for used in taken.values()):
                break
        return taken


def _taken(command: Sequence[str]) -> dict[str, Resources]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise clang.ToolError(f"ptxas failed with status {done.returncode}:\n{done.stderr}")
    return {m["name"]: _resources(m) for m in _RESOURCES.finditer(done.stderr)}


def _resources(match: re.Match[str]) -> Resources:
    shared = re.search(r"(\d+) bytes smem", match["rest"])
    return Resources(
        registers=int(match["registers"]),
        spill_store_bytes=int(match["stores"]),
        spill_load_bytes=int(match["loads"]),
        stack_bytes=int(match["stack"]),
        shared_bytes=int(shared[1]) if shared else 0,
    )


def _inlined(text: str) -> str:
    """Make the entry the kernel itself. A called one spills more, and ptxas counts it under another name."""
    return re.sub(r"^(define (?!.*ptx_kernel).*?) (#\d+)", r"\1 alwaysinline \2", text, flags=re.M)


_READ = (
    r"ld\.global(?:\.nc)?((?:\.v(?P<count>\d))?\.\w(?P<bits>\d+) *\t[^\n]*, )\[{}(?P<offset>(?:\+\d+)?)\];"
)


def _by_value(ptx: str, source: PreparedSource) -> str:
    """Constant memory that is read at fixed offsets becomes parameters, to be read where they are needed.

    Apple's GPUs keep it in registers of a simdgroup. Read as device memory it would take some of each thread.
    Not in the exact mode, whose shuffles ptxas then shares less, for reasons of its own.
    """
    for kernel in source.kernels:
        begin = re.search(rf"\.entry {kernel.name}\(", ptx)
        if begin is None:
            continue
        end = ptx.find(".entry", begin.end())
        body = ptx[begin.start() : end if end > 0 else len(ptx)]
        buffers = sorted((p.index, p.is_constant) for p in kernel.parameters if p.attribute == "buffer")
        for number, (_, is_constant) in enumerate(buffers):
            if is_constant:
                ptx = ptx.replace(body, body := _with_value(body, f"{kernel.name}_param_{number}"))
    return ptx


def _with_value(body: str, parameter: str) -> str:
    """The entry with the parameter's bytes for its address; as it is, if it does more than read them."""
    size = 0
    result = body
    for register in re.findall(rf"ld\.param\.b64 \t(%rd\d+), \[{parameter}\];", body):
        read = re.compile(_READ.format(register))
        found = list(read.finditer(body))
        if len(re.findall(rf"{register}\b", body)) != len(found) + 1:
            return body
        ends = [int(m["offset"] or 0) + int(m["count"] or 1) * int(m["bits"]) // 8 for m in found]
        size = max(size, *ends, 1)
        result = read.sub(rf"ld.param\1[{parameter}\g<offset>];", result)
        result = result.replace(f"\tld.param.b64 \t{register}, [{parameter}];\n", "")
    if not size:
        return body
    return re.sub(
        rf"\.param [^\n]*\b{parameter}\b(?=,?\n)", f".param .align 16 .b8 {parameter}[{size}]", result
    )


def _limited(ptx: str, source: PreparedSource, registers: int) -> str:
    for kernel in source.kernels:
        most = registers
        if kernel.max_threads < MAX_THREADS:
            most = min(most, _REGISTERS_OF_MULTIPROCESSOR // (2 * kernel.max_threads))
        ptx = re.sub(rf"\.entry {kernel.name}\([^)]*\)", rf"\g<0>\n.maxnreg {most}", ptx)
    return ptx


def _entries(source: PreparedSource) -> str:
    lines = ['# 1 "<kernel records>"', "namespace msl_records {"]
    lines += [_entry(number, kernel) for number, kernel in enumerate(source.kernels)]
    return "\n".join([*lines, "}", ""])


def _entry(number: int, kernel: Kernel) -> str:
    buffers = sorted(p.index for p in kernel.parameters if p.attribute == "buffer")
    offsets = sorted(p.index for p in kernel.parameters if p.attribute == "threadgroup")
    signature = ", ".join([*(f"device char* b{i}" for i in buffers), *(f"uint t{i}" for i in offsets)])
    given = " ".join([*(f"given.buffers[{i}] = b{i};" for i in buffers),
                      *(f"given.threadgroup_offsets[{i}] = t{i};" for i in offsets)])  # fmt: skip
    entry = f"__attribute__((nvptx_kernel)) void entry_{number}({signature})"
    return (
        f"constexpr msl::parameter parameters_{number}[] = {{{parameters(kernel.parameters)}}};\n"
        f'{entry} __asm__("{kernel.name}");\n{entry} {{ msl::launch given; {given} '
        f"msl::entry<decltype({kernel.function}), parameters_{number}>::run<&{kernel.function}>(given); }}"
    )


def _constant_memory_to_device_memory(text: str) -> str:
    """Address space 2 is not an NVIDIA GPU's. What Metal keeps there can be read as device memory."""
    text = text.replace("addrspace(2)", "addrspace(1)").replace(".p2.", ".p1.")
    return re.sub(r"addrspacecast (\(?ptr addrspace\(1\) [^\n]*? to ptr addrspace\(1\))", r"bitcast \1", text)
