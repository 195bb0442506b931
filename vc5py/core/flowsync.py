"""What balancers tell each other about flows: datagrams and their signatures, and whose word holds.

Must not know: sockets, clocks, the flow table. docs/flow-sync.md has the format by bit. Invariant:
`Codec.open` returns a datagram only where a key that we accept has signed every bit of it; whatever the
bytes, it raises nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAGIC: Final = b"VC5S"
VERSION: Final = 1
EVERYBODY: Final = 0
MAC_BYTES: Final = 16
MAX_DATAGRAM: Final = 8952
DEFAULT_DATAGRAM: Final = 1400
MAX_PEERS: Final = 64

# magic, version, kind, number of records, cluster, addressee, node, boot, sequence, key, reserved
_HEADER = struct.Struct("<4sBBHIIQQQII")
_HEARD = struct.Struct("<QQ")
HEADER_BYTES: Final = _HEADER.size
MIN_DATAGRAM: Final = HEADER_BYTES + MAC_BYTES

RECORD = np.dtype([("hash", "<u8"), ("identity", "<u4"), ("age", "<u2"), ("state", "u1"), ("reserved", "u1")])
Records = NDArray[np.void]
NO_RECORDS: Final[Records] = np.zeros(0, RECORD)

# An established flow seen within so many seconds, which all talking ones are, is sure to be where it is said.
RECENT_S: Final = 128
# Ages are told in whole seconds, and travel: of two that differ by no more, neither is the newer.
SLACK_S: Final = 2
ESTABLISHED: Final = 4
CLOSING: Final = 2


class Kind(IntEnum):
    """FLOWS carries records; HELLO says that a node is there, and when, and whom it hears; COPY asks one
    node for all of its flows; COPIED says that they have been sent.
    """

    FLOWS = 1
    HELLO = 2
    COPY = 3
    COPIED = 4


class Outcome(StrEnum):
    """What becomes of a datagram. Only ACCEPTED ones change anything."""

    ACCEPTED = "accepted"
    SHORT = "short"  # shorter than a header and a signature, or than it says
    FOREIGN = "foreign"  # not ours at all
    VERSION = "version"  # of a version that we don't speak
    CLUSTER = "cluster"  # of another cluster
    KEY = "key"  # signed with a key that we don't have
    FORGED = "forged"  # the signature is wrong
    MALFORMED = "malformed"  # signed, and yet it makes no sense
    ADDRESSEE = "addressee"  # for another node
    OWN = "own"  # sent by ourselves
    SOURCE = "source"  # from an address that isn't a peer's
    UNPROVEN = "unproven"  # from a boot that hasn't shown lately that it hears us: maybe an old recording
    REPLAYED = "replayed"  # seen before, too old to know, or of a boot that another one has replaced
    CROWDED = "crowded"  # more peers than we have room for


# Of these a datagram tells by itself, before its signature is looked at.
BY_LOOK: Final = (Outcome.SHORT, Outcome.FOREIGN, Outcome.VERSION, Outcome.CLUSTER, Outcome.KEY)


@dataclass(frozen=True, slots=True)
class Look:
    """What all datagrams have in common that may count, for who can do no more than compare: `least_bytes`,
    and of each field its offset, its bytes, and what it may hold, read in network byte order.
    """

    least_bytes: int
    fields: tuple[tuple[int, int, frozenset[int]], ...]


def _folded(secret: bytes) -> bytes:
    """All of a secret counts, however long."""
    return secret if len(secret) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(secret).digest()


def _digest(person: bytes, data: bytes, size: int, secret: bytes = b"") -> bytes:
    return hashlib.blake2b(data, key=_folded(secret), person=person, digest_size=size).digest()


def cluster_id(name: str) -> int:
    """32 bits."""
    return int.from_bytes(_digest(b"vc5 cluster", name.encode(), 4), "little")


def node_id(name: str) -> int:
    """64 bits, never 0."""
    return int.from_bytes(_digest(b"vc5 node", name.encode(), 8), "little") or 1


def addressee(node: int, boot: int) -> int:
    """How a datagram names the one node that it is for, as it is since its start: 32 bits, never 0."""
    return (node ^ boot ^ boot >> 32) & 0xFFFFFFFF or 1


@dataclass(frozen=True, slots=True)
class Key:
    """What datagrams are signed with. Derived from a secret by a label of its own, so that neither the flow
    hash's key says anything of this one nor the other way round.
    """

    material: bytes
    id: int

    @classmethod
    def derive(cls, secret: bytes) -> Key:
        material = _digest(b"vc5 sync key", b"", 64, secret)
        return cls(material, int.from_bytes(_digest(b"vc5 key id", b"", 4, material), "little"))

    def __repr__(self) -> str:
        return f"Key({self.id:08x})"  # never the material


@dataclass(frozen=True, slots=True)
class Datagram:
    """One that was signed by a member of the cluster. `body` is what is between header and signature."""

    kind: Kind
    to: int
    node: int
    boot: int
    sequence: int
    count: int
    body: memoryview | bytes = b""

    def records(self) -> Records:
        return np.frombuffer(self.body, RECORD, self.count)

    def heard(self) -> frozenset[tuple[int, int]]:
        """Whom the sender of a HELLO hears, and itself: nodes, and the last time that each has told, which is
        its boot plus milliseconds.
        """
        return frozenset((node, boot) for node, boot in _HEARD.iter_unpack(self.body))


_ITEM_BYTES = {Kind.FLOWS: RECORD.itemsize, Kind.HELLO: _HEARD.size, Kind.COPY: 0, Kind.COPIED: 0}


def heard_body(heard: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(_HEARD.pack(node, boot) for node, boot in heard)


class Codec:
    """`keys`: the first one signs, all are accepted. `node`, `boot`: our own."""

    def __init__(self, keys: Sequence[Key], cluster: int, node: int, boot: int) -> None:
        self._cluster = cluster
        self.node, self.boot = node, boot
        self._for_us = (EVERYBODY, addressee(node, boot))
        self._signs = keys[0]
        self._signers = {key.id: hashlib.blake2b(key=key.material, digest_size=MAC_BYTES) for key in keys}

    def seal(self, kind: Kind, to: int, sequence: int, count: int, body: bytes | memoryview) -> bytes:
        head = _HEADER.pack(
            MAGIC, VERSION, kind, count, self._cluster, to, self.node, self.boot, sequence, self._signs.id, 0
        )
        signer = self._signers[self._signs.id].copy()
        signer.update(head)
        signer.update(body)
        return b"".join((head, body, signer.digest()))

    def look(self) -> Look:
        """What every datagram has for which `open` has no outcome of BY_LOOK."""
        words = (0, (int.from_bytes(MAGIC, "little"),)), (8, (self._cluster,)), (40, self._signers)
        fields = [(at, 4, frozenset(map(_turned, values))) for at, values in words]
        return Look(MIN_DATAGRAM, (*fields, (4, 1, frozenset((VERSION,)))))

    def open(self, data: bytes | memoryview) -> Datagram | Outcome:
        """What a datagram says, or why it says nothing."""
        if len(data) < MIN_DATAGRAM:
            return Outcome.SHORT
        magic, version, kind, count, cluster, to, node, boot, sequence, key, zero = _HEADER.unpack_from(data)
        if magic != MAGIC:
            return Outcome.FOREIGN
        if version != VERSION:
            return Outcome.VERSION
        if cluster != self._cluster:
            return Outcome.CLUSTER
        signer = self._signers.get(key)
        if signer is None:
            return Outcome.KEY
        signer = signer.copy()
        signer.update(data[:-MAC_BYTES])
        if not hmac.compare_digest(signer.digest(), bytes(data[-MAC_BYTES:])):
            return Outcome.FORGED
        size = _ITEM_BYTES.get(kind)
        body = data[HEADER_BYTES:-MAC_BYTES]
        if size is None or size * count != len(body) or (count and not size) or zero or not node:
            return Outcome.MALFORMED
        if node == self.node:
            return Outcome.OWN
        if to not in self._for_us:
            return Outcome.ADDRESSEE
        return Datagram(Kind(kind), to, node, boot, sequence, count, body)


def _turned(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "little"), "big")


def records_per(datagram_bytes: int) -> int:
    return (datagram_bytes - MIN_DATAGRAM) // RECORD.itemsize


def cut(records: Records, datagram_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Records as bodies of datagrams of at most that size, each with its number of records."""
    step = records_per(datagram_bytes)
    raw = memoryview(records.tobytes())
    for start in range(0, len(records), step):
        count = min(step, len(records) - start)
        yield count, raw[start * RECORD.itemsize : (start + count) * RECORD.itemsize]


# Whose word holds, as xdp/learn.h has it


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a node holds of a flow: the backend's 32-bit identity, when it was seen last (in seconds, on
    anybody's clock), and its state.
    """

    identity: int
    seen: float
    state: int

    def is_sure(self, now: float) -> bool:
        return self.state >= ESTABLISHED and now - self.seen <= RECENT_S


def prefers(a: Opinion, b: Opinion, now: float) -> bool:
    """Whether of two opinions on a flow's backend the first one holds: what is sure before what isn't, then
    what is newer, then the greater identity. So two nodes that have told each other agree.
    """
    if a.is_sure(now) != b.is_sure(now):
        return a.is_sure(now)
    if abs(a.seen - b.seen) > SLACK_S:
        return a.seen > b.seen
    return a.identity > b.identity


def merged(ours: int, theirs: int, newer: float) -> int:
    """The state of a flow that two nodes know at the same backend. `newer`: how much later they saw it."""
    first, last = (ours, theirs) if newer > 0 else (theirs, ours)
    if CLOSING in (first, last):
        return last
    return max(first, last)
