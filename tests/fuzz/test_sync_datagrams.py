"""A million datagrams that are almost right: none changes anything, and each is counted by what is wrong.

Datagrams of every kind that a member of the cluster has signed are cut, lengthened, flipped, spliced and
played again; random bytes besides. All that while the member lives, starts again, falls silent, comes back,
is one of a crowd, and we start again ourselves. What each is to be counted as follows from how it was made,
by the documented order of checks, and never from the code. A twin hears only what is right: nobody can tell
the two apart afterwards.
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
from vc5py.core.flowsync import MAX_PEERS, RECORD, Codec, Key, Kind, Outcome, addressee
from vc5py.core.peering import FORGET_S, Peer, Peering
from vc5py.peers.exchange import Exchange
from vc5py.peers.transport import Address, Transport

DATAGRAMS = 1_000_000
BATCH = 10_000
STEP_S = 0.1
CLUSTER = flowsync.cluster_id("fuzz")
KEY, OTHER = Key.derive(b"the secret of the cluster"), Key.derive(b"the secret of somebody else")
US, THEM = 1, 2
FROM: Address = ("198.18.0.2", 9999)
KIND_AT = 5
CLUSTER_BYTES, KEY_BYTES = CLUSTER.to_bytes(4, "little"), KEY.id.to_bytes(4, "little")

Expected = dict[bytes, Outcome]


def expected_of_unsigned(data: bytes) -> Outcome:
    """Of one that no member has signed: by the header of docs/flow-sync.md, in the order of its checks."""
    if len(data) < 64:
        return Outcome.SHORT
    if data[:4] != b"VC5S":
        return Outcome.FOREIGN
    if data[4] != 1:
        return Outcome.VERSION
    if data[8:12] != CLUSTER_BYTES:
        return Outcome.CLUSTER
    return Outcome.KEY if data[40:44] != KEY_BYTES else Outcome.FORGED


@dataclass
class Wire:
    """In the place of sockets. Each datagram comes with what it is to be counted as."""

    received: Counter[Outcome] = field(default_factory=Counter)
    expected: Counter[Outcome] = field(default_factory=Counter)
    waiting: list[tuple[bytes, bool, Outcome]] = field(default_factory=list)
    asked: list[tuple[int, bytes]] = field(default_factory=list)

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        received, expected = self.received, self.expected
        for data, welcome, outcome in self.waiting:
            expected[outcome] += 1
            yield memoryview(data), FROM, welcome
            assert received[outcome] == expected[outcome], f"{data.hex()} is not {outcome}"
        self.waiting = []

    def send(self, data: bytes, address: Address | None = None) -> None:
        if data[KIND_AT] != Kind.HELLO:
            self.asked.append((data[KIND_AT], data[12:16]))


class Receiver:
    def __init__(self, boot: int, now: float) -> None:
        self.boot, self.began, self.wire = boot, now, Wire()
        self.peering = Peering(US, boot, now)
        transport = cast(Transport, self.wire)
        self.exchange = Exchange(Codec([KEY], CLUSTER, US, boot), transport, self.peering, 1400)
        self.wire.received = self.exchange.counts.received

    def name(self, now: float) -> tuple[int, int]:
        """Of us, with what our clock shows."""
        return US, self.boot + int((now - self.began) * 1000)

    def hear(self, datagrams: list[tuple[bytes, bool, Outcome]], now: float) -> int:
        """Returns how many records count."""
        self.wire.waiting = datagrams
        return len(self.exchange.receive(now))

    def state(self) -> object:
        """All that datagrams change, but how soon the next HELLO goes out and whom it names besides peers."""
        peering, exchange = self.peering, self.exchange
        return (
            {node: _all_of(peer) for node, peer in peering.peers.items()},
            {key: _all_of(peer) for key, peer in peering._former.items()},
            vars(peering._copies),
            peering._actions,
            peering.lost_before,
            exchange.addresses,
            exchange.copies,
            self.wire.asked,
        )


def _all_of(peer: Peer) -> object:
    streams = {
        to: ([getattr(stream.window, name) for name in stream.window.__slots__], list(stream._vouchers))
        for to, stream in peer.streams.items()
    }
    return [getattr(peer, name) for name in Peer.__slots__ if name != "streams"], streams


def flows(source: random.Random, count: int) -> bytes:
    made = np.zeros(count, RECORD)
    made["hash"] = [source.getrandbits(64) for _ in range(count)]
    made["identity"], made["state"] = 7, 4
    return made.tobytes()


class Life:
    """A node from one start to the next, as it is on the wire: `said` is all that it has."""

    def __init__(self, source: random.Random, boot: int, to: int, *, node: int = THEM) -> None:
        self._source, self._codec, self._to = source, Codec([KEY], CLUSTER, node, boot), to
        self._sequences: Counter[int] = Counter()
        self.said: dict[Kind, list[bytes]] = {kind: [] for kind in Kind}

    def say(self, kind: Kind, heard: tuple[int, int] | None = None, *, to: int = 0) -> bytes:
        count, body = 0, b""
        if kind is Kind.HELLO and heard is not None:
            count, body = 1, flowsync.heard_body([heard])
        elif kind is Kind.FLOWS:
            count = self._source.choice([1, 2, 5, 83])
            body = flows(self._source, count)
        data = self._codec.seal(kind, to, self._sequences[to], count, body)
        self._sequences[to] += 1
        self.said[kind].append(data)
        return data

    def go_on(self, heard: tuple[int, int]) -> list[bytes]:
        """Some of each kind, to all and to us."""
        hello = [self.say(Kind.HELLO, heard, to=to) for to in (0, self._to)]
        return [
            *hello,
            self.say(Kind.FLOWS),
            self.say(Kind.FLOWS, to=self._to),
            self.say(Kind.COPY, to=self._to),
            self.say(Kind.COPIED, to=self._to),
        ]

    def all(self) -> list[bytes]:
        return [data for said in self.said.values() for data in said]


def of_strangers(source: random.Random, boot: int) -> tuple[Expected, list[bytes]]:
    """What is right in itself, signed or not, and never for us; and HELLOs among it of an unknown node."""
    elsewhere = addressee(US, 999)
    made: Expected = {}

    def note(codec: Codec, outcome: Outcome, to: int = 0) -> None:
        for n in range(20):
            for kind, count, body in (
                (Kind.FLOWS, 1, flows(source, 1)),
                (Kind.HELLO, 1, flowsync.heard_body([(US, boot)])),
                (Kind.COPY, 0, b""),
                (Kind.COPIED, 0, b""),
            ):
                made[codec.seal(kind, to, 1000 + n, count, body)] = outcome

    note(Codec([OTHER], CLUSTER, THEM, 21), Outcome.KEY)
    note(Codec([Key(OTHER.material, KEY.id)], CLUSTER, THEM, 21), Outcome.FORGED)
    note(Codec([KEY], flowsync.cluster_id("another cluster"), THEM, 21), Outcome.CLUSTER)
    note(Codec([KEY], CLUSTER, US, boot), Outcome.OWN)
    note(Codec([KEY], CLUSTER, US, boot - 1), Outcome.OWN)
    note(Codec([KEY], CLUSTER, THEM, 21), Outcome.ADDRESSEE, to=elsewhere)
    note(Codec([KEY], CLUSTER, 0, 21), Outcome.MALFORMED)
    signer = Codec([KEY], CLUSTER, THEM, 21)
    for kind, count, body in (
        (Kind.FLOWS, 2, flows(source, 1)),
        (Kind.HELLO, 0, bytes(16)),
        (Kind.COPY, 1, b""),
    ):
        made[signer.seal(kind, 0, 5, count, body)] = Outcome.MALFORMED
    before = Life(source, 20, elsewhere)
    for n in range(20):  # it was heard by us as we were before
        made[before.say(Kind.HELLO, (US, boot - 1 - n))] = Outcome.UNPROVEN
        made[before.say(Kind.FLOWS)] = Outcome.UNPROVEN
    unknown = Life(source, 33, elsewhere, node=3)
    for _ in range(20):
        made[unknown.say(Kind.HELLO)] = Outcome.UNPROVEN
        made[unknown.say(Kind.FLOWS)] = Outcome.UNPROVEN
    return made, unknown.said[Kind.HELLO]


class Mutator:
    """`table`: what datagrams that members have signed, or strangers, are to be counted as."""

    def __init__(self, source: random.Random, table: Expected) -> None:
        self._random, self._source, self._table = source.random, source, table
        kinds: dict[int, list[bytes]] = {}
        for data in table:
            kinds.setdefault(data[KIND_AT], []).append(data)
        self._kinds = list(kinds.values())

    def _base(self) -> bytes:
        chance = self._random
        said = self._kinds[int(chance() * len(self._kinds))]
        return said[int(chance() * len(said))]

    def _bytes(self) -> bytes:
        chance, base = self._random, self._base()
        match int(chance() * 8):
            case 0 | 1:
                return base  # played again
            case 2:
                return base[: int(chance() * len(base))]
            case 3:
                return base + self._source.randbytes(1 + int(chance() * 40))
            case 4:
                return self._source.randbytes(int(chance() * 200))
            case 5:
                at, other = int(chance() * len(base)), self._base()
                return base[:at] + other[at:]
            case 6:
                at = int(chance() * 48)  # another byte of the header
                return base[:at] + bytes([int(chance() * 256)]) + base[at + 1 :]
            case _:
                changed = bytearray(base)
                for _ in range(1 + int(chance() * 3)):
                    changed[int(chance() * len(changed))] ^= 1 << int(chance() * 8)
                return bytes(changed)

    def one(self) -> tuple[bytes, bool, Outcome]:
        data = self._bytes()
        if self._random() < 0.01:
            return data, False, Outcome.SOURCE
        return data, True, self._table.get(data) or expected_of_unsigned(data)


class Story:
    """Both receivers hear what is right; one of them also what isn't."""

    def __init__(self, source: random.Random) -> None:
        self.source, self.now, self.tried = source, 1000.0, 0
        self.gained: Counter[Outcome] = Counter()
        self.start(11 << 40)

    def start(self, boot: int) -> None:
        """Ours."""
        self.plain, self.fuzzed = Receiver(boot, self.now), Receiver(boot, self.now)
        self.strangers, self.unknown = of_strangers(self.source, boot)
        self.ours = addressee(US, boot)

    def life(self, boot: int, *, node: int = THEM) -> Life:
        return Life(self.source, boot, self.ours, node=node)

    def goes_on(self, *lives: Life, held: int = 0) -> None:
        """All that they say counts. `held`: so many times it reached nobody before."""
        for life in lives:
            for _ in range(held):
                life.go_on(self.plain.name(self.now))
            said = [(data, True, Outcome.ACCEPTED) for data in life.go_on(self.plain.name(self.now))]
            heard = [receiver.hear(said, self.now) for receiver in (self.plain, self.fuzzed)]
            assert heard[0] == heard[1] > 0
        self.tick()

    def tick(self) -> None:
        for receiver in (self.plain, self.fuzzed):
            receiver.exchange.tick(self.now)
            receiver.exchange.copies.clear()
        assert self.plain.state() == self.fuzzed.state()

    def pass_time(self, seconds: float, *lives: Life) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.goes_on(*lives) if lives else self.tick()

    def fuzz(self, batches: int, *lives: Life, **recorded: tuple[list[bytes], Outcome]) -> None:
        """`recorded`: of lives, what else is played, and what it is to be counted as now."""
        table = dict(self.strangers)
        for said, outcome in recorded.values():
            table |= dict.fromkeys(said, outcome)
        one = Mutator(self.source, table).one
        before = self.fuzzed.wire.received.copy()
        for _ in range(batches):
            self.now += STEP_S
            self.goes_on(*lives)
            assert self.fuzzed.hear([one() for _ in range(BATCH)], self.now) == 0
            assert self.plain.state() == self.fuzzed.state()
        gained = self.fuzzed.wire.received - before
        assert gained == self.fuzzed.wire.expected - before
        assert set(gained) >= set(table.values()) | {Outcome.SHORT, Outcome.FOREIGN, Outcome.VERSION}
        del gained[Outcome.ACCEPTED]
        self.gained += gained


def play(story: Story, batches: int) -> None:
    """So many at each of its seven stations."""
    replayed, unproven = Outcome.REPLAYED, Outcome.UNPROVEN
    first, second = story.life(21), story.life(22)
    for _ in range(20):
        story.goes_on(first)
    story.fuzz(batches, first, first=(first.all(), replayed))

    story.goes_on(first, held=10)
    story.now += STEP_S
    for _ in range(20):
        story.goes_on(second)
    story.fuzz(batches, second, first=(first.all(), replayed), second=(second.all(), replayed))

    story.pass_time(FORGET_S + 2.0, second)  # the first one is forgotten
    story.fuzz(batches, second, first=(first.all(), unproven), second=(second.all(), replayed))

    story.pass_time(FORGET_S + 2.0)  # and both are
    assert not story.fuzzed.peering.peers
    story.fuzz(batches, first=(first.all(), unproven), second=(second.all(), unproven))

    before = second.all()
    story.goes_on(second, held=1)
    story.fuzz(batches, second, first=(first.all(), unproven), second=(before, replayed))

    crowd = [story.life(100 + node, node=node) for node in range(4, 4 + MAX_PEERS - 1)]
    late = story.life(999, node=999)
    story.goes_on(*crowd, second)
    late.go_on(story.plain.name(story.now))
    hellos = {Kind.HELLO: late.said[Kind.HELLO]}
    others = [data for data in late.all() if data not in hellos[Kind.HELLO]]
    story.fuzz(
        batches, second, first=(first.all(), unproven), second=(before, replayed),
        crowded=(hellos[Kind.HELLO] + story.unknown, Outcome.CROWDED), late=(others, unproven),
    )  # fmt: skip

    recorded = first.all() + second.all() + late.all()
    to_all = [data for data in recorded if data[12:16] == bytes(4)]
    to_us = [data for data in recorded if data[12:16] != bytes(4)]
    story.start(12 << 40)
    third = story.life(23)
    story.goes_on(third)
    left = DATAGRAMS // BATCH - 6 * batches
    story.fuzz(
        left, third, all=(to_all, unproven), us=(to_us, Outcome.ADDRESSEE), third=(third.all(), replayed)
    )


def test_a_million_wrong_datagrams_change_nothing_and_each_is_counted_by_what_is_wrong() -> None:
    seed = time.time_ns() & 0xFFFFFFFF
    print(f"seed {seed}")
    story = Story(random.Random(seed))
    play(story, DATAGRAMS // BATCH // 7)
    assert sum(story.gained.values()) == DATAGRAMS
    assert set(story.gained) == set(Outcome) - {Outcome.ACCEPTED}
