"""A flow's 64-bit name, as xdp/hash.h computes it, and the key that all nodes of a cluster share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vc5py.model import IPAddress

_MASK = (1 << 64) - 1
_FRAGMENT_PROTOCOL = 44


@dataclass(frozen=True, slots=True)
class FlowKey:
    """The secret half of the hash: 64 bits to start from and a 64-bit odd multiplier."""

    start: int
    odd: int

    @classmethod
    def derive(cls, secret: bytes = b"") -> FlowKey:
        """The same for the same secret. Without one, anybody can compute which flows share a set."""
        key = secret if len(secret) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(secret).digest()
        digest = hashlib.blake2b(b"vc5py flow key", key=key, digest_size=16).digest()
        return cls(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1)


def mix(h: int, word: int) -> int:
    """One round of the hash: 64 bits in, 64 bits out."""
    h = ((h ^ word) * 0xFF51AFD7ED558CCD) & _MASK
    return h ^ h >> 32


def _finish(h: int, odd: int) -> int:
    h = h * odd & _MASK
    h ^= h >> 29
    h = h * 0xC4CEB9FE1A85EC53 & _MASK
    return h ^ h >> 32


def _addresses(key: FlowKey, source: bytes, destination: bytes) -> int:
    if len(source) == 4:
        return mix(key.start, int.from_bytes(source + destination, "little"))
    h = key.start
    for packed in (source, destination):
        for half in (packed[:8], packed[8:]):
            h = mix(h, int.from_bytes(half, "little"))
    return h


def flow_hash(
    key: FlowKey, source: IPAddress, destination: IPAddress, sport: int, dport: int, protocol: int
) -> int:
    """The name of a 5-tuple seen from the client; ports in host order, `protocol` as numbered by IANA."""
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes([protocol])
    h = _addresses(key, source.packed, destination.packed)
    return _finish(mix(h, int.from_bytes(ports, "little")), key.odd)


def client_hash(key: FlowKey, source: IPAddress) -> int:
    """What the slot of a sticky service is taken from: the client's address alone."""
    nobody = bytes(len(source.packed))
    return _finish(mix(_addresses(key, source.packed, nobody), 0), key.odd)


def fragment_hash(key: FlowKey, source: IPAddress, destination: IPAddress, identification: int) -> int:
    """The name that all fragments of one packet share; `identification` as a number in network order."""
    is_ipv6 = len(source.packed) == 16
    word = int.from_bytes(identification.to_bytes(4 if is_ipv6 else 2, "big"), "little")
    h = _addresses(key, source.packed, destination.packed)
    return _finish(mix(h, word | (_FRAGMENT_PROTOCOL if is_ipv6 else 0) << 32), key.odd)


def table_slot(flow_hash: int, slots: int) -> int:
    """The slot of a Maglev table of `slots` (a power of two) slots that a flow falls into."""
    return (flow_hash >> 40 & 0xFFFF) & (slots - 1)


def other_slot(flow_hash: int, slots: int) -> int:
    """The second candidate's slot of a least-conns service."""
    return (flow_hash >> 48) & (slots - 1)
