"""What somebody can do who hears every datagram, and may hold back and play any of them for ever: nothing.

Two or three whole nodes, each as its sharing process has it, start again, fall silent and are cut off at
random, while recordings of all that they ever said are played to them. Whatever counts is new, and was made
less than FRESH_S ago; and who is really there is heard at once.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from vc5py.core.flowsync import RECORD, Codec, Datagram, Key, Kind, Outcome, addressee, cluster_id, heard_body
from vc5py.core.peering import FORGET_S, FRESH_S, MAX_FORMER, MAX_NAMED, MAX_STRANGERS, Peering
from vc5py.peers import exchange as exchanges
from vc5py.peers.exchange import Exchange, Recipient
from vc5py.peers.transport import Address, Transport

KEY, CLUSTER = Key.derive(b"the secret of the tests"), cluster_id("tests")
TICK_S = 0.1
Name = tuple[int, int, int, int]  # of a datagram: addressee, node, boot, sequence


def name_of(data: bytes) -> Name:
    """As docs/flow-sync.md has the header."""
    (to,), (node, boot, sequence) = struct.unpack_from("<I", data, 12), struct.unpack_from("<QQQ", data, 16)
    return to, node, boot, sequence


@dataclass
class Air:
    """All that was ever sent, and when it was."""

    now: float = 1000.0
    sent: list[bytes] = field(default_factory=list)
    made_at: dict[Name, float] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    counted: int = 0

    def send(self, sender: Node, data: bytes) -> None:
        name = name_of(data)
        assert name not in self.made_at, "a number is used twice"
        self.sent.append(data)
        self.made_at[name] = self.now
        for node in self.nodes:
            if node is not sender and not sender.cut and not node.cut:
                node.waiting.append(data)


class Watched(Peering):
    """Of one life of a node: checks each datagram that counts."""

    air: Air

    def receive(self, datagram: Datagram, now: float) -> Outcome:
        outcome = super().receive(datagram, now)
        if outcome is Outcome.ACCEPTED:
            name = datagram.to, datagram.node, datagram.boot, datagram.sequence
            assert name not in self.counted, "counts twice"
            assert now - self.air.made_at[name] <= FRESH_S, "counts although it is old"
            self.counted.add(name)
            self.air.counted += 1
        return outcome

    def __init__(self, node: int, boot: int, air: Air) -> None:
        super().__init__(node, boot, air.now)
        self.air = air
        self.counted: set[Name] = set()


class Node:
    """In the place of its sockets, too. `cut`: neither hears nor is heard, and knows nothing of that."""

    def __init__(self, number: int, air: Air, source: random.Random) -> None:
        self.number, self.air, self.source = number, air, source
        self.waiting: list[bytes] = []
        self.cut = False
        self.start()
        air.nodes.append(self)

    def start(self) -> None:
        boot = self.source.getrandbits(64)
        self.waiting.clear()
        self.peering = Watched(self.number, boot, self.air)
        codec = Codec([KEY], CLUSTER, self.number, boot)
        self.exchange = Exchange(codec, cast(Transport, self), self.peering, 1400)

    def send(self, data: bytes, address: Address | None = None) -> None:
        self.air.send(self, data)

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        waiting, self.waiting = self.waiting, []
        for data in waiting:
            yield memoryview(data), ("198.18.0.2", 9), True

    def live(self) -> None:
        """A tick: something is told to all, and to who asked for a copy."""
        now = self.air.now
        self.exchange.receive(now)
        self.exchange.tick(now)
        self.exchange.put(np.zeros(1, RECORD))
        while self.exchange.copies:
            recipient = self.exchange.copies.popleft()
            self.exchange.put(np.zeros(100, RECORD), recipient)
            self.exchange.end_copy(recipient)
        self.exchange.flush(now)

    def hears(self, other: Node) -> bool:
        """Whether what that one told last counts here."""
        last = max(name for name in self.air.made_at if name[:3] == (0, other.number, other.peering.boot))
        return last in self.peering.counted


class World:
    def __init__(self, size: int, seed: int) -> None:
        self.source = random.Random(seed)
        self.air = Air()
        self.until: int | None = None  # so many recordings are there, where no more are made
        self.nodes = [Node(number + 1, self.air, self.source) for number in range(size)]

    def pass_time(self, seconds: float, *, played: int = 0) -> None:
        """`played`: how many recordings to each node, every tick."""
        for _ in range(round(seconds / TICK_S)):
            self.air.now += TICK_S
            for node in self.nodes:
                node.live()
                node.waiting += self.recordings(played)
                self.source.shuffle(node.waiting)

    def recordings(self, count: int) -> list[bytes]:
        """In the order in which they were sent: from the last seconds, or from any time."""
        sent = self.air.sent[: self.until]
        latest = len(sent) if self.source.random() < 0.5 else min(len(sent), 600)
        start = len(sent) - self.source.randrange(latest) - 1 if sent else 0
        return sent[start : start + count]

    def all_hear_each_other(self) -> bool:
        for node in self.nodes:
            node.exchange.receive(self.air.now)
        return all(one.hears(other) for one in self.nodes for other in self.nodes if one is not other)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 3])
def test_no_recording_ever_counts_and_who_is_there_is_heard(size: int, seed: int) -> None:
    world = World(size, seed)
    for _ in range(20):
        node = world.source.choice(world.nodes)
        match world.source.randrange(4):
            case 0:
                node.start()
            case 1:
                node.cut = not node.cut
            case 2:  # out of nobody's sight
                node.cut = True
                node.start()
            case _:
                pass
        world.pass_time(world.source.choice([0.1, 0.3, 1.0, 3.0, FRESH_S + 2]), played=20)
    for node in world.nodes:
        node.cut = False
    world.pass_time(1.5, played=3)
    world.pass_time(TICK_S)
    assert world.all_hear_each_other()
    assert world.air.counted > 300


@pytest.mark.parametrize("times", [1, 2, 3])
def test_node_that_starts_again_is_heard_at_once_however_often(times: int) -> None:
    world = World(2, times)
    world.pass_time(5.0)
    assert world.all_hear_each_other()
    for _ in range(times):
        world.nodes[1].start()
        world.pass_time(0.3, played=2)
    world.pass_time(0.2)
    assert world.all_hear_each_other()


def test_node_that_was_cut_off_for_long_is_heard_a_second_later() -> None:
    world = World(2, 1)
    world.pass_time(5.0)
    world.nodes[1].cut = True
    world.until = len(world.air.sent)
    world.pass_time(3 * FORGET_S, played=5)
    assert not world.nodes[0].peering.peers
    assert not world.nodes[0].exchange.addresses
    world.nodes[1].cut = False
    world.pass_time(1.3, played=2)
    assert world.all_hear_each_other()


def test_what_is_remembered_is_bounded_however_often_a_node_starts() -> None:
    world = World(2, 1)
    first, second = world.nodes
    for _ in range(200):
        second.start()
        world.pass_time(0.5)
        assert first.peering.peers[2].boot == second.peering.boot
        assert len(first.peering._former) <= FORGET_S / 0.5 + 1
        assert len(first.peering.hello(world.air.now)) <= MAX_NAMED + 1
    world.pass_time(FORGET_S + 1.0)
    assert not first.peering._former
    assert not first.peering._strangers


def test_numbers_are_never_used_twice_although_streams_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MOST_STREAMS", 4)
    world = World(2, 1)
    first, second = world.nodes
    world.pass_time(1.0)
    earlier = second.peering.boot
    for _ in range(20):
        second.start()
        world.pass_time(1.0)
        assert len(first.exchange._sequences) <= 4
        assert len(first.exchange._greeted) <= 4
    for boot in (earlier, second.peering.boot):
        first.exchange.put(np.zeros(1, RECORD), Recipient(addressee(2, boot)))
    world.pass_time(0.5)
    assert world.all_hear_each_other()


# As transcripts

US, OUR_BOOT, THEM = 1, 100, 2
OURS = addressee(US, OUR_BOOT)


class Judge:
    """Our node, which is played to. `at`: the time of our clock that a HELLO names."""

    def __init__(self) -> None:
        self.peering = Peering(US, OUR_BOOT, 0.0)

    def hello(
        self, boot: int, sequence: int, at: float, now: float, *, to: int = 0, node: int = THEM
    ) -> Outcome:
        body = heard_body([(US, OUR_BOOT + int(at * 1000))])
        return self.peering.receive(Datagram(Kind.HELLO, to, node, boot, sequence, 1, body), now)

    def flows(self, boot: int, sequence: int, now: float, *, to: int = 0) -> Outcome:
        return self.peering.receive(Datagram(Kind.FLOWS, to, THEM, boot, sequence, 0), now)


def test_boot_that_was_replaced_is_a_recording_for_good() -> None:
    judge = Judge()
    assert judge.hello(21, 1, 0.0, 0.1) is Outcome.ACCEPTED
    assert judge.flows(21, 2, 0.1) is Outcome.ACCEPTED
    assert judge.hello(22, 0, 1.0, 1.1) is Outcome.ACCEPTED
    for now in (1.2, 5.0):
        judge.peering.tick(now)
        assert judge.hello(21, 1, 0.0, now) is Outcome.REPLAYED
        assert judge.hello(21, 3, 0.9, now) is Outcome.REPLAYED  # held back until now
        assert judge.flows(21, 4, now) is Outcome.REPLAYED
        assert judge.flows(22, round(now * 10), now) is Outcome.ACCEPTED
    judge.hello(22, 60, 12.0, 12.0)
    judge.peering.tick(12.0)
    for sequence, at in ((1, 0.0), (3, 0.9)):
        assert judge.hello(21, sequence, at, 12.0) is Outcome.UNPROVEN
    assert judge.flows(21, 4, 12.0) is Outcome.UNPROVEN
    assert judge.flows(22, 61, 12.0) is Outcome.ACCEPTED
    assert judge.peering.peers[THEM].boot == 22


def test_boot_that_we_never_heard_of_does_not_replace_a_later_one() -> None:
    """All of its datagrams were held back, and all name us as we are."""
    judge = Judge()
    assert judge.hello(22, 0, 1.0, 1.1) is Outcome.ACCEPTED
    assert judge.hello(21, 5, 1.0, 1.2) is Outcome.UNPROVEN
    assert judge.flows(21, 6, 1.2) is Outcome.UNPROVEN
    judge.peering.tick(1.2 + FORGET_S)
    assert not judge.peering.peers
    assert judge.hello(21, 5, 0.9, 12.0) is Outcome.UNPROVEN
    assert judge.flows(21, 6, 12.0) is Outcome.UNPROVEN


def test_live_boot_comes_back_with_all_that_was_seen_of_it() -> None:
    """A recording of ours had made it name an old time, and so the one before took its place."""
    judge = Judge()
    assert judge.hello(22, 0, 0.5, 1.1) is Outcome.ACCEPTED
    assert judge.flows(22, 4, 1.1) is Outcome.ACCEPTED
    assert judge.hello(21, 7, 0.9, 1.2) is Outcome.ACCEPTED
    assert judge.flows(22, 2, 1.2) is Outcome.REPLAYED
    assert judge.hello(22, 3, 1.1, 1.4) is Outcome.ACCEPTED
    assert judge.flows(22, 4, 1.5) is Outcome.REPLAYED
    assert judge.flows(22, 5, 1.5) is Outcome.ACCEPTED
    assert judge.hello(21, 8, 1.0, 1.6) is Outcome.REPLAYED


def test_forgotten_boot_counts_again_after_a_hello_that_is_new() -> None:
    judge = Judge()
    judge.hello(21, 1, 0.0, 0.1)
    assert judge.flows(21, 2, 9.9) is Outcome.ACCEPTED
    judge.peering.tick(9.9 + FORGET_S + 0.1)
    assert not judge.peering.peers
    assert judge.hello(21, 1, 0.0, 20.0) is Outcome.UNPROVEN
    assert judge.flows(21, 2, 20.0) is Outcome.UNPROVEN
    assert judge.hello(21, 5, 20.0, 20.1) is Outcome.ACCEPTED
    assert judge.flows(21, 2, 20.1) is Outcome.REPLAYED
    assert judge.flows(21, 6, 20.1) is Outcome.ACCEPTED


@pytest.mark.parametrize("to", [0, OURS])
def test_what_is_held_back_for_too_long_does_not_count(to: int) -> None:
    """Neither within a stream that goes on nor at the end of one."""
    judge = Judge()
    for second in range(12):
        assert judge.hello(21, 10 * second, float(second), float(second), to=to) is Outcome.ACCEPTED
    assert judge.flows(21, 25, 11.9, to=to) is Outcome.ACCEPTED
    assert judge.flows(21, 15, 11.9, to=to) is Outcome.REPLAYED
    assert judge.flows(21, 111, 10.9995 + FRESH_S, to=to) is Outcome.ACCEPTED
    assert judge.flows(21, 112, 11.0 + FRESH_S, to=to) is Outcome.UNPROVEN
    assert judge.hello(21, 113, 11.0, 11.0 + FRESH_S, to=to) is Outcome.UNPROVEN


def test_stream_to_us_counts_after_a_hello_of_its_own() -> None:
    """The end of an earlier copy may be held back for days, while the stream to all goes on."""
    judge = Judge()
    judge.hello(21, 0, 0.0, 0.0)
    assert judge.flows(21, 4, 0.1, to=OURS) is Outcome.UNPROVEN
    assert judge.hello(21, 5, 0.0, 0.1, to=OURS) is Outcome.ACCEPTED
    assert judge.flows(21, 6, 0.1, to=OURS) is Outcome.ACCEPTED
    assert judge.peering.lost == 1  # what was ignored is missing: a copy that it belongs to isn't whole


def test_peer_that_no_longer_hears_us_does_not_count() -> None:
    judge = Judge()
    judge.hello(21, 0, 0.0, 0.0)
    for second in range(1, 10):
        assert judge.hello(21, second, 0.0, float(second)) is Outcome.ACCEPTED
        judge.peering.tick(float(second))
        assert judge.peering.peers[THEM].proven
    assert judge.hello(21, 11, 0.0, FRESH_S + 0.5) is Outcome.UNPROVEN
    judge.peering.tick(FRESH_S + 0.5)
    assert not judge.peering.peers[THEM].proven


def test_times_that_our_clock_has_not_shown_prove_nothing() -> None:
    judge = Judge()
    assert judge.hello(21, 0, 5.0, 4.9) is Outcome.UNPROVEN
    assert judge.hello(21, 1, -0.001, 4.9) is Outcome.UNPROVEN
    assert judge.hello(21, 2, 4.9, 4.9) is Outcome.ACCEPTED


def test_boots_that_are_near_the_end_of_their_bits() -> None:
    ours, theirs = (1 << 64) - 2, (1 << 64) - 1
    made = Peering(US, ours, 0.0)
    body = heard_body([(THEM, 4), (US, (ours + 3000) & (1 << 64) - 1)])
    assert made.receive(Datagram(Kind.HELLO, 0, THEM, theirs, 0, 2, body), 3.1) is Outcome.ACCEPTED
    assert set(made.hello(4.0)) == {(US, 3998), (THEM, 4)}


def test_no_more_boots_are_taken_up_than_there_is_room_for() -> None:
    judge = Judge()
    for n in range(MAX_FORMER + 1):
        assert judge.hello(1000 + n, 0, n / 1000, 1.0) is Outcome.ACCEPTED
    assert judge.hello(5000, 0, 0.9, 1.0) is Outcome.UNPROVEN
    assert judge.hello(1000, 1, 0.9, 1.0) is Outcome.ACCEPTED  # that one has its room
    judge.peering.tick(2.0 + FORGET_S)
    assert judge.hello(5000, 1, 11.9, 12.1) is Outcome.ACCEPTED


def test_a_hello_names_the_last_that_was_told_and_no_recording_of_earlier_ones() -> None:
    judge = Judge()
    for told in (500, 100, 700, 300):
        body = heard_body([(THEM, 21 + told), (US, OUR_BOOT)])
        judge.peering.receive(Datagram(Kind.HELLO, 0, THEM, 21, told, 2, body), 1.0)
        body = heard_body([(THEM, 5000 + told)])
        judge.peering.receive(Datagram(Kind.HELLO, 0, THEM, 5000, told, 1, body), 1.0)
    assert set(judge.peering.hello(1.0)) == {(US, OUR_BOOT + 1000), (THEM, 21 + 700), (THEM, 5000 + 700)}


def test_flood_of_strangers_fits_one_hello_and_the_last_ones_are_named() -> None:
    judge = Judge()
    judge.hello(21, 0, 0.0, 0.1)
    for n in range(20):
        judge.hello(100 + n, 0, 99.0, 0.2)
    named = {number for node, number in judge.peering.hello(0.2) if node == THEM}
    assert named == {21, *range(100 + 20 - MAX_STRANGERS, 100 + 20)}
    for n in range(200):
        judge.hello(1000 + n, 0, 99.0, 0.3, node=50 + n)
    said = judge.peering.hello(0.3)
    assert len(said) == MAX_NAMED + 1
    assert {(THEM, 21), (50 + 199, 1199)} <= set(said)
    assert judge.hello(7, 0, 0.0, 0.3, node=1000) is Outcome.ACCEPTED
    assert len(judge.peering.hello(0.3)) == MAX_NAMED + 1
    judge.peering.tick(0.4 + FORGET_S)
    assert judge.peering.hello(20.0) == ((US, OUR_BOOT + 20_000),)
