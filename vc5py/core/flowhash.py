"""A flow's 64-bit name, as xdp/hash.h computes it, and the key that all nodes of a cluster share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FlowKey:
    """The secret half of the hash: 64 bits to start from and a 64-bit odd multiplier."""

    start: int
    odd: int

    @classmethod
    def derive(cls, secret: bytes = b"") -> FlowKey:
        """The same for the same secret. Without one, anybody can compute which flows share a set."""
        digest = hashlib.blake2b(b"vc5py flow key", key=secret[:64], digest_size=16).digest()
        return cls(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1)


def _mix(h: int, word: int) -> int:
    h = ((h ^ word) * 0xFF51AFD7ED558CCD) & _MASK
    return h ^ h >> 32


def _finish(h: int, odd: int) -> int:
    h = h * odd & _MASK
    h ^= h >> 29
    h = h * 0xC4CEB9FE1A85EC53 & _MASK
    return h ^ h >> 32


def flow_hash4(
    key: FlowKey, source: IPv4Address, destination: IPv4Address, sport: int, dport: int, protocol: int
) -> int:
    """The name of a 5-tuple seen from the client; ports in host order, `protocol` as numbered by IANA."""
    addresses = int.from_bytes(source.packed + destination.packed, "little")
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes([protocol])
    h = _mix(key.start, addresses)
    return _finish(_mix(h, int.from_bytes(ports, "little")), key.odd)


def table_slot(flow_hash: int, slots: int) -> int:
    """The slot of a Maglev table of `slots` (a power of two) slots that a flow falls into."""
    return (flow_hash >> 40 & 0xFFFF) & (slots - 1)
