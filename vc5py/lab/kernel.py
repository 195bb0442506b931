"""The few kernel calls the lab needs that have no command: setns, SIOCETHTOOL, bpf.

Must not know: what the lab looks like. Invariant: `entered` changes the calling thread only and always
puts it back.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LabError

NETNS_DIRECTORY = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_IFNAMSIZ = 16
_BPF_PROG_LOAD = 5
_BPF_OBJ_PIN = 6
_BPF_PROG_TYPE_XDP = 6
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_XDP_PASS = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Runs the block with this thread in the named network namespace (setns(2)).

    Sockets made in the block stay in that namespace; /proc/sys/net is that namespace's within it.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        try:
            target = os.open(NETNS_DIRECTORY / namespace, os.O_RDONLY)
        except FileNotFoundError:
            raise LabError(f"there is no network namespace {namespace}: the lab is not up") from None
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def write_sysctl(key: str, value: int) -> None:
    """Sets `key` (dotted) in the network namespace this thread is in."""
    Path("/proc/sys", *key.split(".")).write_text(f"{value}\n")


def transmit_checksums_off(interface: str) -> None:
    """As `ethtool -K INTERFACE tx off`.

    A virtual interface leaves checksums to "hardware" that isn't there; an XDP program then sees, and
    sends on, packets with unfinished checksums, which a real drops.
    """
    command = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack(f"{_IFNAMSIZ}sP16x", interface.encode(), ctypes.addressof(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2), returns what the kernel returned; `attributes` is the start of union bpf_attr."""
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise LabError(f"the lab doesn't know the bpf system call of {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, 128)
    result: int = _libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}")
    return result


def pin_pass_program(path: Path) -> None:
    """Loads the smallest XDP program there is, `return XDP_PASS`, and pins it at `path` on a bpffs."""
    instructions = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0xB7, 0, 0, _XDP_PASS)  # r0 = 2
        + struct.pack("=BBhi", 0x95, 0, 0, 0)  # exit
    )
    license_text = ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQ", _BPF_PROG_TYPE_XDP, 2, ctypes.addressof(instructions), ctypes.addressof(license_text)
    )
    _pin_and_close(_bpf(_BPF_PROG_LOAD, load), path)


def pin_programs(directory: Path, macros: dict[str, int]) -> None:
    """Compiles real.c and pins each of its programs in `directory`, on a bpffs, under its name."""
    from vc5py.dataplane import compiler  # only now: it loads numpy and bcc, which no other command needs

    module = compiler.compile_file(Path(__file__).with_name("real.c"), macros)
    _pin_and_close(module.load("lab_decapsulate", compiler.ProgramType.XDP), directory / "lab_decapsulate")
    for name in ("lab_untag_only", "lab_untag", "lab_tag", "lab_untag_both_only", "lab_tag_both"):
        _pin_and_close(module.load(name, compiler.ProgramType.TC), directory / name)


def _pin_and_close(program: int, path: Path) -> None:
    try:
        name = ctypes.create_string_buffer(bytes(path))
        _bpf(_BPF_OBJ_PIN, struct.pack("=QI", ctypes.addressof(name), program))
    finally:
        os.close(program)
