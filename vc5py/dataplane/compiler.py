"""Compiles and loads the programs of xdp/; the only module that knows bcc.

bcc insists on kernel headers, which cloud kernels and containers rarely have. An XDP or TC program needs
only the user-space API headers, so bcc is pointed at a small tree made of xdp/shim and links to
/usr/include. Maps are made elsewhere: the C gets their file descriptors as macros.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vc5py.dataplane import libbpf
from vc5py.dataplane.abi import XDP_DIR
from vc5py.errors import DataplaneError

# uname -m -> (the kernel's name of the architecture, Debian's multiarch directory)
_ARCHITECTURES = {"x86_64": ("x86", "x86_64-linux-gnu"), "aarch64": ("arm64", "aarch64-linux-gnu")}


class ProgramType(Enum):
    """enum bpf_prog_type (linux/bpf.h)."""

    TC = 3
    XDP = 6


@dataclass(frozen=True, slots=True)
class Module:
    """A compiled C file; its programs live as long as the file descriptors that `load` returned."""

    _bpf: Any

    def load(self, function: str, kind: ProgramType, *, frags: bool = False) -> int:
        """Verifies and loads one function; returns its file descriptor, which the caller owns.

        `frags`: the XDP program takes frames in several buffers, which drivers want of it where the MTU is
        larger than a buffer (Linux 5.18). bcc has no word for that.
        """
        if frags:
            instructions = self._bpf.dump_func(function.encode())
            return libbpf.load_program(kind.value, function, instructions, libbpf.BPF_F_XDP_HAS_FRAGS)
        try:
            return os.dup(self._bpf.load_func(function.encode(), kind.value).fd)
        except Exception as error:  # bcc raises bare Exception
            raise DataplaneError(f"the kernel refused the program {function}: {error}") from error


@contextlib.contextmanager
def _kernel_source() -> Iterator[Path]:
    """The header tree that bcc takes for the kernel's; it is needed only while compiling."""
    try:
        arch, multiarch = _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise DataplaneError(f"no header shim for the architecture {platform.machine()}") from None
    asm = Path("/usr/include") / multiarch
    if not (asm / "asm" / "types.h").exists():
        raise DataplaneError("the kernel's API headers are missing: install the package linux-libc-dev")
    with tempfile.TemporaryDirectory(prefix="vc5py-headers-") as name:
        root = Path(name)
        (root / "include").mkdir()
        for folder in (XDP_DIR / "shim" / "include").iterdir():
            (root / "include" / folder.name).symlink_to(folder)
        (root / "include" / "uapi").symlink_to("/usr/include")
        (root / "arch" / arch / "include").mkdir(parents=True)
        (root / "arch" / arch / "include" / "uapi").symlink_to(asm)
        yield root


def compile_file(path: Path, macros: Mapping[str, int]) -> Module:
    """Compiles one C file with the given macros. Needs root or CAP_BPF."""
    try:
        from bcc import BPF
    except ImportError as error:
        raise DataplaneError(
            "python3-bpfcc is missing (a Debian package; the virtual environment must see system packages)"
        ) from error
    flags = [
        f"-D{name}={value:#x}ULL" if value > 0xFFFFFFFF else f"-D{name}={value}U"
        for name, value in macros.items()
    ]
    # As the kernel is built: headers are read as words (checksums) that were written as fields.
    flags += ["-fno-strict-aliasing"]
    flags += [f"-I{XDP_DIR}", "-Wall", "-Werror", "-Wno-macro-redefined", "-Wno-unused-function"]
    with _kernel_source() as headers:
        before = os.environ.get("BCC_KERNEL_SOURCE")
        os.environ["BCC_KERNEL_SOURCE"] = str(headers)
        try:
            return Module(BPF(text=path.read_bytes(), cflags=flags))
        except Exception as error:  # bare Exception, says bcc; clang's messages went to stderr
            raise DataplaneError(f"{path.name} does not compile: {error}") from error
        finally:
            if before is None:
                del os.environ["BCC_KERNEL_SOURCE"]
            else:
                os.environ["BCC_KERNEL_SOURCE"] = before
