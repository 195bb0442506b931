"""A million datagrams that are almost right: none changes anything, and each is counted by what is wrong.

Valid datagrams of a member of the cluster are cut, lengthened, flipped, spliced, signed with other keys, made
of other clusters and versions, and played again; random bytes besides.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from vc5py.core import flowsync
from vc5py.core.flowsync import MIN_DATAGRAM, RECORD, Codec, Key, Kind, Outcome
from vc5py.core.peering import Peering
from vc5py.peers.exchange import Exchange
from vc5py.peers.transport import Address, Transport

DATAGRAMS = 1_000_000
BATCH = 10_000
CLUSTER = flowsync.cluster_id("fuzz")
KEY, OTHER = Key.derive(b"the secret of the cluster"), Key.derive(b"the secret of somebody else")
US, OUR_BOOT, THEM, THEIR_BOOT = 1, 11, 2, 22
FROM: Address = ("198.18.0.2", 9999)


@dataclass
class Wire:
    """What comes in, in the place of sockets."""

    waiting: list[bytes] = field(default_factory=list)

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        while self.waiting:
            yield memoryview(self.waiting.pop()), FROM, True


def flows(source: random.Random, count: int) -> bytes:
    made = np.zeros(count, RECORD)
    made["hash"] = [source.getrandbits(64) for _ in range(count)]
    made["identity"], made["state"] = 7, 4
    return made.tobytes()


def valid(source: random.Random, codec: Codec, sequence: int) -> bytes:
    count = source.choice([1, 2, 5, 83])
    return codec.seal(Kind.FLOWS, 0, sequence, count, flows(source, count))


class Mutator:
    """`used`: datagrams that the receiver has had already."""

    def __init__(self, source: random.Random, used: list[bytes]) -> None:
        self._source, self._used = source, used
        foreign = flowsync.cluster_id("another cluster")
        self._strangers = [
            Codec([OTHER], CLUSTER, THEM, THEIR_BOOT),
            Codec([Key(OTHER.material, KEY.id)], CLUSTER, THEM, THEIR_BOOT),
            Codec([KEY], foreign, THEM, THEIR_BOOT),
            Codec([KEY], CLUSTER, THEM, THEIR_BOOT - 1),  # a recording of an earlier boot
            Codec([KEY], CLUSTER, US, OUR_BOOT),  # our own, played back
            Codec([KEY], CLUSTER, 3, 33),  # a node that hasn't heard us
        ]
        self._recorded = [valid(source, codec, n) for codec in self._strangers for n in range(50)]

    def one(self) -> bytes:
        source = self._source
        base = source.choice(self._used)
        match source.randrange(8):
            case 0:
                return base  # played again
            case 1:
                return base[: source.randrange(len(base))]
            case 2:
                return base + source.randbytes(source.randrange(1, 40))
            case 3:
                return source.randbytes(source.randrange(200))
            case 4:
                return source.choice(self._recorded)
            case 5:
                at, other = source.randrange(len(base)), source.choice(self._used)
                return base[:at] + other[at:]
            case 6:
                return base[:4] + bytes([source.randrange(2, 256)]) + base[5:]
            case _:
                changed = bytearray(base)
                for _ in range(source.randrange(1, 4)):
                    changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
                return bytes(changed)


def test_a_million_wrong_datagrams_change_nothing_and_are_counted() -> None:
    seed = time.time_ns() & 0xFFFFFFFF
    source = random.Random(seed)
    wire = Wire()
    peering = Peering(US, OUR_BOOT, 0.0)
    codec = Codec([KEY], CLUSTER, US, OUR_BOOT)
    exchange = Exchange(codec, cast(Transport, wire), peering, 1400)
    them = Codec([KEY], CLUSTER, THEM, THEIR_BOOT)
    hello = them.seal(Kind.HELLO, 0, 0, 1, flowsync.heard_body([(US, OUR_BOOT)]))
    used = [hello] + [valid(source, them, n) for n in range(1, 400)]
    wire.waiting = used[::-1]
    assert len(exchange.receive(0.0)) > 0
    assert exchange.counts.received == {Outcome.ACCEPTED: 400}
    mutate = Mutator(source, used).one
    before = exchange.counts.received.copy()
    for _ in range(DATAGRAMS // BATCH):
        wire.waiting = [mutate() for _ in range(BATCH)]
        assert len(exchange.receive(1.0)) == 0, f"seed {seed}"
    gained: Counter[Outcome] = exchange.counts.received - before
    assert gained[Outcome.ACCEPTED] == 0, f"seed {seed}"
    assert sum(gained.values()) == DATAGRAMS
    assert set(gained) >= {
        Outcome.SHORT, Outcome.FOREIGN, Outcome.VERSION, Outcome.CLUSTER, Outcome.KEY, Outcome.FORGED,
        Outcome.OWN, Outcome.UNPROVEN, Outcome.REPLAYED,
    }  # fmt: skip
    assert list(peering.peers) == [THEM]
    assert peering.peers[THEM].boot == THEIR_BOOT
    wire.waiting = [valid(source, them, 400)]
    assert len(exchange.receive(2.0)) > 0  # and what is right still counts
    assert min(map(len, used)) >= MIN_DATAGRAM
