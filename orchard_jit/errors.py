"""The errors that orchard_jit raises beside Python's own ValueError, TypeError and NotImplementedError."""

from __future__ import annotations


class OrchardError(RuntimeError):
    """Base of every error about compiling, finding or loading a kernel."""


class ToolchainError(OrchardError):
    """A compiler or ninja is missing or does not work. The message says what to install."""


class CompileError(OrchardError):
    """A compiler refused a source. The message holds its first errors and where the full log, or it, lies."""


class MissingVariantError(OrchardError):
    """A kernel is not in the cache and compiling is forbidden. The message holds the prebuild command."""


class BlocksError(OrchardError):
    """A file of block sizes cannot be used. The message names the file, the entry and what is wrong."""


class CacheError(OrchardError):
    """The cache directory cannot be used, or an entry in it is damaged."""
