"""TCP segments without data, as bytes (RFC 9293): a SYN and a RST out, answers to a SYN in.

Must not know: sockets, marks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vc5py.model import IPAddress

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_SEGMENT = struct.Struct("!HHIIBBHHH")
_SYN_OPTIONS = b"\x02\x04\x05\xb4"  # MSS 1460: some servers take no SYN without one
_WINDOW = 64_240
_TCP = 6


@dataclass(frozen=True, slots=True)
class Ends:
    """The addresses and ports of a connection, seen from here."""

    own: IPAddress
    own_port: int
    peer: IPAddress
    peer_port: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A received segment. `ack`: the number it acknowledges."""

    peer_port: int
    own_port: int
    ack: int
    flags: int


def syn(ends: Ends, sequence: int) -> bytes:
    return _segment(ends, sequence, SYN, _SYN_OPTIONS)


def rst(ends: Ends, sequence: int) -> bytes:
    """`sequence` has to be what the peer expects next."""
    return _segment(ends, sequence, RST, b"")


def parse(segment: bytes) -> Answer | None:
    """None for what is too short to be one."""
    if len(segment) < _SEGMENT.size:
        return None
    peer_port, own_port, _, ack, _, flags, *_ = _SEGMENT.unpack_from(segment)
    return Answer(peer_port, own_port, ack, flags)


def without_ip_header(packet: bytes) -> bytes:
    """What an IPv4 packet carries."""
    return packet[(packet[0] & 0x0F) * 4 :] if packet else b""


def _segment(ends: Ends, sequence: int, flags: int, options: bytes) -> bytes:
    words = (_SEGMENT.size + len(options)) // 4
    window = _WINDOW if flags & SYN else 0
    ports = (ends.own_port, ends.peer_port)
    bare = _SEGMENT.pack(*ports, sequence, 0, words << 4, flags, window, 0, 0)
    sum_ = _checksum(ends, bare + options)
    return _SEGMENT.pack(*ports, sequence, 0, words << 4, flags, window, sum_, 0) + options


def _checksum(ends: Ends, segment: bytes) -> int:
    """RFC 9293 section 3.1, with the pseudo-header. A sum of 16-bit words is the number modulo 0xFFFF."""
    covered = ends.own.packed + ends.peer.packed + struct.pack("!II", len(segment), _TCP) + segment
    return 0xFFFF - int.from_bytes(covered, "big") % 0xFFFF
