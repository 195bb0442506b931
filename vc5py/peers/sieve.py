"""What the kernel throws away of a flood before it takes room in a buffer: whatever can't count by its look.

A socket filter (classic BPF, linux/filter.h) and the rule when to use one. To look at each datagram here is
better, as it is then counted by its reason; so that is left to the kernel only while there are too many.
Must not know: what is in a datagram, but where it has to look like what. Invariant: what the filter drops
wouldn't have counted, and is in the socket's number of drops.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vc5py.core.flowsync import Look
from vc5py.model import IPAddress

FLOOD = 1000  # datagrams that can't count, within
WINDOW_S = 1.0

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO = 26, 27, 55
_MEMINFO = struct.Struct("=9I")
_DROPS = 8  # SK_MEMINFO_DROPS
_UDP_BYTES = 8  # a filter of a UDP socket begins at the UDP header
_LOAD_LENGTH, _AT_LEAST, _EQUAL, _RETURN = 0x80, 0x35, 0x15, 0x06
_LOAD = {4: 0x20, 2: 0x28, 1: 0x30}
_ALL = 0xFFFFFFFF
_NET_OFF = 0x1_0000_0000 - 0x100000  # SKF_NET_OFF: from the network header on
_SOURCE_AT = {4: 12, 6: 8}

_Instruction = tuple[int, int, int, int]  # code, jump where true, where false, operand
_DROP: _Instruction = (_RETURN, 0, 0, 0)


def program(look: Look, sources: Iterable[IPAddress] | None) -> bytes:
    """Accepts what has that look and, unless None, comes from one of `sources`, of one IP version."""
    made: list[_Instruction] = [
        (_LOAD_LENGTH, 0, 0, 0),
        (_AT_LEAST, 1, 0, _UDP_BYTES + look.least_bytes),
        _DROP,
    ]
    for offset, size, values in look.fields:
        made.append((_LOAD[size], 0, 0, _UDP_BYTES + offset))
        made += [(_EQUAL, len(values) - n, 0, value) for n, value in enumerate(sorted(values))]
        made.append(_DROP)
    for source in sources or ():
        made += _from(source)
    made.append(_DROP if sources is not None else (_RETURN, 0, 0, _ALL))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in made)


def _from(source: IPAddress) -> list[_Instruction]:
    """Accepts it, or goes on behind."""
    words = struct.unpack(f">{len(source.packed) // 4}I", source.packed)
    made: list[_Instruction] = []
    for n, word in enumerate(words):
        made.append((_LOAD[4], 0, 0, _NET_OFF + _SOURCE_AT[source.version] + 4 * n))
        made.append((_EQUAL, 0, 2 * (len(words) - n) - 1, word))
    return [*made, (_RETURN, 0, 0, _ALL)]


def attach(sock: socket.socket, code: bytes) -> None:
    """In place of a former one. Raises OSError."""
    memory = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def detach(sock: socket.socket) -> None:
    """Raises OSError where there is none."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def drops(sock: socket.socket) -> int:
    """What the kernel threw away since the socket was made, modulo 2^32: by a filter, or for lack of room."""
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(info)[_DROPS])


@dataclass(slots=True)
class Guard:
    """Whether there is a flood: `on` at once when there is, off a window after it has ended."""

    on: bool = False
    _before: int = 0
    _since: float = float("-inf")

    def look(self, unwanted: int, now: float) -> bool:
        """`unwanted`: what couldn't count, since the start, whoever threw it away."""
        is_flood = unwanted - self._before >= FLOOD
        if now - self._since >= WINDOW_S:
            self._before, self._since, self.on = unwanted, now, is_flood
        self.on = self.on or is_flood
        return self.on
