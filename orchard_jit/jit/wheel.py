"""A wheel of compiled kernels: `pip install` is all that deploying them takes.

It holds a package that is a root folder of entries and no code, which `roots` finds by its name.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import orchard_jit
from orchard_jit.errors import CacheError
from orchard_jit.jit.bundle import members
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.roots import INSTALLED

_OLDEST_GLIBC = (2, 17)
"""What every installer knows of, on every processor."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The same entries make the same bytes."""
_METADATA = """\
Metadata-Version: 2.1
Name: orchard-jit-cache
Version: {version}
Summary: Compiled kernels for orchard_jit.
Requires-Python: >=3.10
Requires-Dist: orchard_jit=={needed}
"""
_WHEEL = """\
Wheel-Version: 1.0
Generator: orchard_jit {needed}
Root-Is-Purelib: false
Tag: {tag}
"""
_MODULE = '"""Compiled kernels, which orchard_jit finds by the name of this package."""\n'


def write(entries: Sequence[Entry], folder: Path, version: str) -> Path:
    """Write a wheel with these entries, which somebody has verified, into a folder.

    Raises:
        CacheError: They run on different platforms.
        FileExistsError: The wheel is there already.

    """
    tag = f"py3-none-{platform_tag(entries)}"
    names = {"version": version, "needed": orchard_jit.__version__, "tag": tag}
    about = f"{INSTALLED}-{version}.dist-info"
    contents = {
        f"{INSTALLED}/__init__.py": _MODULE.encode(),
        **{f"{INSTALLED}/{name}": path.read_bytes() for name, path in members(entries).items()},
        f"{about}/METADATA": _METADATA.format(**names).encode(),
        f"{about}/WHEEL": _WHEEL.format(**names).encode(),
    }
    record = "".join(f"{name},{_digest(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()

    wheel = folder / f"{INSTALLED}-{version}-{tag}.whl"
    with wheel.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            member = zipfile.ZipInfo(name, _LONG_AGO)
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return wheel


def platform_tag(entries: Sequence[Entry]) -> str:
    """What an installer must know: operating system, processor, and how old a system may be.

    Raises:
        CacheError: The entries run on different platforms.

    """
    platforms = sorted({"-".join(entry.shelf.split("-")[-2:]) for entry in entries})
    if len(platforms) != 1:
        raise CacheError(
            f"a wheel is for one platform, not for {', '.join(platforms) or 'none'}; see --shelf"
        )
    system, machine = platforms[0].split("-")
    if system == "darwin":
        return f"macosx_{_oldest_macos(entries)}_{machine}"
    versions = [version for entry in entries for version in _glibc_versions(entry.library.read_bytes())]
    if not versions:  # another C library, of which no tag tells
        return f"linux_{machine}"
    major, minor = max(_OLDEST_GLIBC, *versions)
    return f"manylinux_{major}_{minor}_{machine}"


def _glibc_versions(library: bytes) -> list[tuple[int, int]]:
    """The versions of glibc whose symbols a library asks for, as its table of strings names them."""
    return [(int(major), int(minor)) for major, minor in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library)]


def _oldest_macos(entries: Sequence[Entry]) -> str:
    """The deployment target where one was set, else the version that the compiler took: this machine's."""
    targets = [entry.manifest["key_inputs"]["MACOSX_DEPLOYMENT_TARGET"] for entry in entries]
    version = max((target or platform.mac_ver()[0] for target in targets), key=_release)
    major, minor = (*_release(version), 0)[:2]
    return f"{major}_{minor if major < 11 else 0}"  # from macOS 11 on, tags name the major version alone


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.decode().rstrip('=')}"
