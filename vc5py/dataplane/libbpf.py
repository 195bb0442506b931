"""The few calls of libbpf.so.1 that bcc lacks, through ctypes: maps made to measure, pins, test runs.

Knows nothing of what the maps mean. Every failure is a DataplaneError with the call's name.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from vc5py.errors import DataplaneError

BPF_F_NO_PREALLOC = 1
BPF_F_MMAPABLE = 1 << 10
BPF_F_XDP_HAS_FRAGS = 1 << 5
ANY = 0


class MapType(IntEnum):
    """enum bpf_map_type (linux/bpf.h)."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    LRU_HASH = 9
    LPM_TRIE = 11
    DEVMAP = 14


class _CreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


class _LoadOpts(ctypes.Structure):
    """The head of struct bpf_prog_load_opts."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    ]


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


@dataclass(frozen=True, slots=True)
class MapInfo:
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    id: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """One BPF_PROG_TEST_RUN: the program's return value, the frame afterwards, ns per repetition."""

    retval: int
    data: bytes
    duration_ns: int

    __test__ = False


@cache
def _lib() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


def _check(result: int, what: str) -> int:
    """libbpf 1.x returns -errno."""
    if result < 0:
        hint = " (root, or CAP_BPF and CAP_NET_ADMIN, is needed)" if -result == errno.EPERM else ""
        raise DataplaneError(f"{what}: {os.strerror(-result)}{hint}")
    return result


def create_map(
    kind: MapType, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    """Returns a file descriptor."""
    opts = _CreateOpts(sz=ctypes.sizeof(_CreateOpts), map_flags=flags)
    result = _lib().bpf_map_create(
        int(kind), name[:15].encode(), key_size, value_size, max_entries, ctypes.byref(opts)
    )
    return _check(result, f"bpf_map_create {name}")


def map_info(fd: int) -> MapInfo:
    info = _MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(_lib().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "bpf_obj_get_info")
    return MapInfo(info.type, info.key_size, info.value_size, info.max_entries, info.map_flags, info.id)


class _ProgInfo(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_void_p),
    ]


def load_program(kind: int, name: str, instructions: bytes, flags: int) -> int:
    """Verifies and loads; returns a file descriptor. `kind`: enum bpf_prog_type, `flags`: BPF_F_*."""
    opts = _LoadOpts(sz=ctypes.sizeof(_LoadOpts), prog_flags=flags)
    result = _lib().bpf_prog_load(
        kind,
        name[:15].encode(),
        b"GPL",
        instructions,
        ctypes.c_size_t(len(instructions) // 8),
        ctypes.byref(opts),
    )
    return _check(result, f"bpf_prog_load {name}")


_MAX_PROGRAM_MAPS = 64  # MAX_USED_MAPS in the kernel


def _program_info(fd: int, info: _ProgInfo) -> _ProgInfo:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(_lib().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "bpf_obj_get_info")
    return info


def program_id(fd: int) -> int:
    return int(_program_info(fd, _ProgInfo()).id)


def program_maps(fd: int) -> frozenset[int]:
    """The ids of the maps that a program uses."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAM_MAPS)()
    asked = _ProgInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    return frozenset(ids[: _program_info(fd, asked).nr_map_ids])


def pin(fd: int, path: Path) -> None:
    _check(_lib().bpf_obj_pin(fd, str(path).encode()), f"bpf_obj_pin {path}")


def get_pinned(path: Path) -> int:
    return _check(_lib().bpf_obj_get(str(path).encode()), f"bpf_obj_get {path}")


def _sizes_of(fd: int) -> tuple[int, int]:
    """Of key and value. The kernel reads and writes so many bytes, however long what it is given."""
    info = map_info(fd)
    return info.key_size, info.value_size


def update(fd: int, key: bytes, value: bytes) -> None:
    if _sizes_of(fd) != (len(key), len(value)):
        raise ValueError(f"a key of {len(key)} and a value of {len(value)} bytes do not fit the map")
    _check(_lib().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(ANY)), "bpf_map_update_elem")


def lookup(fd: int, key: bytes) -> bytes | None:
    """The value, or None where there is none."""
    key_size, value_size = _sizes_of(fd)
    if len(key) != key_size:
        raise ValueError(f"a key of {len(key)} bytes does not fit the map")
    value = ctypes.create_string_buffer(value_size)
    result = _lib().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _check(result, "bpf_map_lookup_elem")
    return value.raw


def delete(fd: int, key: bytes) -> None:
    """Deleting what is not there is fine."""
    result = _lib().bpf_map_delete_elem(fd, key)
    if result != -errno.ENOENT:
        _check(result, "bpf_map_delete_elem")


def keys(fd: int, key_size: int) -> list[bytes]:
    """All keys of a hash map that nobody else changes meanwhile."""
    found: list[bytes] = []
    previous: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while _lib().bpf_map_get_next_key(fd, previous, following) == 0:
        previous = following.raw
        found.append(previous)
    return found


def test_run(
    prog_fd: int, frame: bytes, *, ctx: bytes | None = None, repeat: int = 1, room: int = 512
) -> TestRun:
    """Runs a program on one frame (BPF_PROG_TEST_RUN). `room`: how much the frame may grow, in bytes."""
    out = ctypes.create_string_buffer(len(frame) + room)
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p),
        data_size_in=len(frame),
        data_out=ctypes.cast(out, ctypes.c_void_p),
        data_size_out=len(out),
        repeat=repeat,
    )
    if ctx is not None:
        opts.ctx_in = ctypes.cast(ctypes.c_char_p(ctx), ctypes.c_void_p)
        opts.ctx_size_in = len(ctx)
    _check(_lib().bpf_prog_test_run_opts(prog_fd, ctypes.byref(opts)), "BPF_PROG_TEST_RUN")
    return TestRun(opts.retval, out.raw[: opts.data_size_out], opts.duration)
