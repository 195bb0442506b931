"""All sessions of a node: two nodes with a link between them in simulated time, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.bfd import packet as wire
from vc5py.bfd.packet import Packet, Reject, State
from vc5py.bfd.protocol import Settings
from vc5py.bfd.sessions import FORGIVE_S, Datagram, Sessions

A, B = "192.0.2.1", "192.0.2.2"
FAST = Settings(100_000, 3)
DETECTION_S = 0.3


@dataclass
class Node:
    """`late_s`: after how long it looks at what has arrived, as a process that has to wait does."""

    address: str
    sessions: Sessions = field(default_factory=Sessions)
    late_s: float = 0.0
    inbox: list[Datagram] = field(default_factory=list)

    def state(self, neighbor: str) -> State:
        return self.sessions.entries[neighbor].session.state

    def wakes_at(self) -> float:
        at = self.sessions.next_at
        return math.inf if at is None else at + self.late_s


class Link:
    """Two nodes, and time that jumps from one event to the next."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.a, self.b = Node(A), Node(B)
        self.whole = True
        self.dropped: Callable[[str], bool] = lambda _to: False
        self.a.sessions.configure({B: FAST}, self.now, self.rng)
        self.b.sessions.configure({A: FAST}, self.now, self.rng)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := min(node.wakes_at() for node in (self.a, self.b))) <= end:
            self.now = max(self.now, at)
            for node in (self.a, self.b):
                if node.wakes_at() <= self.now or (node.inbox and not node.late_s):
                    self.wake(node)
        self.now = end

    def wake(self, node: Node) -> None:
        while node.inbox:
            node.sessions.receive(node.inbox.pop(0))
        for neighbor, data in node.sessions.advance(self.now, self.rng):
            other = self.a if neighbor == A else self.b
            if self.whole and not self.dropped(neighbor):
                other.inbox.append(Datagram(node.address, 255, data, self.now))
                if not other.late_s:
                    self.wake(other)

    def states(self) -> tuple[State, State]:
        return self.a.state(B), self.b.state(A)


def up(seed: int = 1) -> Link:
    link = Link(seed)
    link.run(3.0)
    assert link.states() == (State.UP, State.UP)
    return link


@given(st.integers())
@settings(max_examples=50)
def test_two_nodes_come_up_and_find_a_cut(seed: int) -> None:
    link = up(seed)
    link.whole = False
    link.run(DETECTION_S + 0.001)
    assert link.states() == (State.DOWN, State.DOWN)
    assert not link.a.sessions.status(B).reachable
    link.whole = True
    link.run(3.0)
    assert link.states() == (State.UP, State.UP)
    assert link.a.sessions.status(B).reachable
    assert link.a.sessions.status(B).transitions in (3, 4, 5, 6)  # with or without Init


@given(st.integers())
@settings(max_examples=50)
def test_two_lost_packets_in_a_row_are_no_reason(seed: int) -> None:
    link = up(seed)
    before = link.a.sessions.status(B).transitions
    turn = {A: 0, B: 0}

    def two_of_three(to: str) -> bool:
        turn[to] += 1
        return turn[to] % 3 != 0

    # At their longest, three intervals are just the detection time: a quarter less, as jitter has it on the
    # average, is what makes two losses bearable.
    link.rng = _Half()
    link.dropped = two_of_three
    link.run(20.0)
    assert link.states() == (State.UP, State.UP)
    assert link.a.sessions.status(B).transitions == before


class _Half(random.Random):
    def random(self) -> float:
        return 0.5


def test_a_cut_in_one_direction_is_found_by_both() -> None:
    link = up()
    link.dropped = lambda to: to == B
    link.run(DETECTION_S + 0.2)
    assert State.UP not in link.states()
    status = link.a.sessions.status(B)
    assert (status.diagnostic, status.reachable) == (3, False), "A was told"
    assert link.b.sessions.status(A).diagnostic == 1, "B found out"


def test_a_reader_who_comes_late_sees_no_silence_where_there_was_none() -> None:
    """What waited in the buffer arrived in time."""
    link = up()
    link.b.late_s = 0.45
    before = link.a.sessions.status(B).transitions
    transitions = link.b.sessions.status(A).transitions
    for _ in range(6):
        waiting = [
            Datagram(A, 255, wire.encode(_from(link.a, link.b)), link.now + n * 0.09) for n in range(5)
        ]
        link.now += 0.45
        for datagram in waiting:
            link.b.sessions.receive(datagram)
        list(link.b.sessions.advance(link.now, link.rng))
    assert link.b.sessions.status(A).transitions == transitions
    assert before == link.a.sessions.status(B).transitions


def test_a_silence_that_is_over_when_it_is_looked_at_was_one_all_the_same() -> None:
    link = up()
    link.b.sessions.receive(Datagram(A, 255, wire.encode(_from(link.a, link.b)), link.now + 1.0))
    status = link.b.sessions.status(A)
    assert (status.state, status.diagnostic, status.reachable) == ("down", 1, False)


def _from(sender: Node, receiver: Node, **changes: object) -> Packet:
    """A packet as the sender would send it now."""
    (session,) = (entry.session for entry in sender.sessions.entries.values())
    (other,) = (entry.session for entry in receiver.sessions.entries.values())
    made = Packet(session.state, session.local_discr, other.local_discr, 100_000, 100_000, multiplier=3)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_administratively_down_says_nothing_about_the_path() -> None:
    link = up()
    told_s = link.a.sessions.close(link.now)
    assert told_s == pytest.approx(DETECTION_S)
    link.run(told_s)
    assert link.states() == (State.ADMIN_DOWN, State.DOWN)
    status = link.b.sessions.status(A)
    assert (status.reachable, status.remote_state, status.diagnostic) == (True, "admin-down", 3)


def test_nobody_to_tell() -> None:
    link = Link()
    assert link.a.sessions.close(0.0) == 0.0
    assert link.a.sessions.configure({}, 0.0, link.rng) == (B,)
    assert list(link.a.sessions.advance(0.0, link.rng)) == []
    assert link.a.sessions.next_at is None


@given(st.integers())
@settings(max_examples=50)
def test_session_that_is_not_wanted_any_more_is_ended_and_not_left_to_be_found_dead(seed: int) -> None:
    """RFC 5880, section 6.8.16: told for a Detection Time, so that one lost packet does no harm."""
    link = up(seed)
    lost = iter([True])
    link.dropped = lambda _to: next(lost, False)
    assert link.a.sessions.configure({}, link.now, link.rng) == (B,)
    link.run(DETECTION_S - 0.001)
    status = link.b.sessions.status(A)
    assert (status.reachable, status.remote_state, status.diagnostic) == (True, "admin-down", 3)
    link.run(0.001)
    heard = status.packets_in
    link.run(1.0)
    assert link.a.sessions.next_at is None, "it is forgotten"
    assert link.b.sessions.status(A).packets_in in (heard, heard + 1)
    assert link.b.sessions.status(A).reachable


def test_slow_neighbor_is_told_for_as_long_as_it_waits() -> None:
    link = up()
    link.b.sessions.configure({A: Settings(1_000_000, 3)}, link.now, link.rng)
    link.run(5.0)
    assert link.a.sessions.close(link.now) == pytest.approx(3.0)


def test_session_that_is_wanted_again_at_once_comes_up() -> None:
    link = up()
    link.a.sessions.configure({}, link.now, link.rng)
    link.run(0.1)
    link.a.sessions.configure({B: FAST}, link.now, link.rng)
    assert not link.a.sessions.leaving
    link.run(5.0)
    assert link.states() == (State.UP, State.UP)


def test_never_up_is_not_unreachable() -> None:
    link = Link()
    link.whole = False
    link.run(20.0)
    assert link.a.sessions.status(B).reachable


def test_a_neighbor_that_stays_silent_may_speak_bfd_no_more() -> None:
    link = up()
    link.whole = False
    link.run(FORGIVE_S - 0.5)
    assert not link.a.sessions.status(B).reachable
    link.run(2.0)
    assert link.a.sessions.status(B).reachable
    assert B in link.a.sessions.changed


def test_it_is_forgiven_when_that_is_due_and_not_with_the_next_packet() -> None:
    sessions, rng = Sessions(), random.Random(1)
    sessions.configure({B: Settings(60_000_000, 1)}, 0.0, rng)
    ours = sessions.entries[B].session.local_discr
    for at, state in ((0.5, State.DOWN), (1.0, State.UP)):
        sessions.receive(Datagram(B, 255, wire.encode(Packet(state, 7, ours, multiplier=1)), at))
    list(sessions.advance(61.0, rng))
    assert not sessions.status(B).reachable
    assert sessions.next_at == 61.0 + FORGIVE_S
    list(sessions.advance(61.0 + FORGIVE_S, rng))
    assert sessions.status(B).reachable


def test_a_neighbor_that_hears_nothing_is_not_forgiven() -> None:
    link = up()
    link.dropped = lambda to: to == B
    link.run(2 * FORGIVE_S)
    assert not link.a.sessions.status(B).reachable


def test_other_settings_leave_the_session_up() -> None:
    link = up()
    before = link.a.sessions.status(B).transitions
    link.a.sessions.configure({B: Settings(300_000, 4)}, link.now, link.rng)
    link.run(2.0)
    assert link.states() == (State.UP, State.UP)
    assert link.a.sessions.status(B).transitions == before
    assert link.b.sessions.status(A).detection_ms == pytest.approx(1200)
    assert link.a.sessions.status(B).detection_ms == pytest.approx(900)
    link.a.sessions.configure({B: Settings(50_000, 3)}, link.now, link.rng)
    link.run(2.0)
    assert link.a.sessions.status(B).transitions == before


def test_refused() -> None:
    link = up()
    good = _from(link.a, link.b)
    yours = good.your_discriminator
    other = replace(good, your_discriminator=yours ^ 1)
    cases = [
        (Datagram(A, 254, wire.encode(good), link.now), Reject.TTL),
        (Datagram(A, 0, wire.encode(good), link.now), Reject.TTL),
        (Datagram(A, 255, b"", link.now), Reject.SHORT),
        (Datagram(A, 255, wire.encode(other), link.now), Reject.NO_SESSION),
        (Datagram("192.0.2.9", 255, wire.encode(good), link.now), Reject.WRONG_NEIGHBOR),
        (Datagram("192.0.2.9", 255, wire.encode(Packet(State.DOWN, 5)), link.now), Reject.NO_SESSION),
    ]
    for datagram, reason in cases:
        session, count = link.b.sessions.entries[A].session, link.b.sessions.rejects[reason]
        link.b.sessions.receive(datagram)
        assert link.b.sessions.entries[A].session == session
        assert link.b.sessions.rejects[reason] == count + 1


@given(st.binary(max_size=60), st.integers(0, 255), st.sampled_from([A, "192.0.2.9", "::1"]))
def test_noise_changes_nothing_but_a_counter(data: bytes, ttl: int, source: str) -> None:
    """What random bytes can't guess is our discriminator."""
    link = LINK
    session, counts = link.b.sessions.entries[A].session, link.b.sessions.rejects.total()
    link.b.sessions.receive(Datagram(source, ttl, data, link.now))
    assert link.b.sessions.entries[A].session == session
    assert link.b.sessions.rejects.total() == counts + 1


@given(st.lists(st.tuples(st.integers(0, 23), st.integers(0, 255)), min_size=1, max_size=6), st.floats(0, 60))
@settings(max_examples=300)
def test_whatever_a_neighbor_says_the_session_goes_on(changes: list[tuple[int, int]], wait_s: float) -> None:
    """Valid packets, mutated: no exception, no busy loop, and with a good neighbor it is up again."""
    link = up()
    data = bytearray(wire.encode(_from(link.a, link.b)))
    for at, value in changes:
        data[at] = value
    link.b.sessions.receive(Datagram(A, 255, bytes(data), link.now))
    sent = len(list(link.b.sessions.advance(link.now, link.rng)))
    assert sent <= 2
    assert (link.b.sessions.next_at or link.now) >= link.now
    # A mutated packet may have asked for anything, detection after days too: let its sender take it back.
    link.b.sessions.receive(Datagram(A, 255, wire.encode(_from(link.a, link.b)), link.now + 0.01))
    link.run(min(wait_s, 5.0) + 4.0)
    assert link.states() == (State.UP, State.UP)


LINK = up()
