"""The sharing process' own parts: how it is told what to do, and what peers see of what it could not tell."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from vc5py import sharer as sharer_module
from vc5py import sharer_messages
from vc5py.core.flowsync import (
    HEADER_BYTES,
    MAC_BYTES,
    RECORD,
    Codec,
    Datagram,
    Key,
    Kind,
    addressee,
    cluster_id,
)
from vc5py.core.peering import Peering
from vc5py.peers.exchange import BURST_S, QUEUE, SEND_RATE, Exchange, Recipient
from vc5py.peers.transport import Address, Transport
from vc5py.sharer import Director, Service, Sharer
from vc5py.sharer_messages import Copied, Report, Strays

KEY, CLUSTER = Key.derive(b"the secret of the tests"), cluster_id("tests")
US, THEM = (1, 11), (2, 22)


@pytest.fixture
def pair() -> Iterator[tuple[Director, socket.socket]]:
    """The sharing process' view of its director, and the director's end."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield Director(theirs.fileno(), theirs.fileno()), ours


def test_lines_come_whole_however_they_are_cut(pair: tuple[Director, socket.socket]) -> None:
    director, ours = pair
    seen = []
    for piece in (b"one", b"\ntwo\nth", b"ree\n", b"rest"):
        ours.send(piece)
        director.read()
        while (line := director.take()) is not None:
            seen.append((piece, line))
    assert seen == [(b"\ntwo\nth", b"one"), (b"\ntwo\nth", b"two"), (b"ree\n", b"three")]
    assert not director.gone
    ours.close()
    director.read()
    assert director.gone


def test_director_that_died_before_it_read_is_gone(pair: tuple[Director, socket.socket]) -> None:
    director, ours = pair
    director.say("report", {})
    ours.close()  # with something unread: the other end is reset
    director.read()
    assert director.gone


def test_what_nobody_hears_is_said_without_harm(pair: tuple[Director, socket.socket]) -> None:
    director, ours = pair
    director.say("copied", 1)
    assert ours.recv(100) == b'{"copied": 1}\n'
    assert not director.gone
    ours.close()
    for _ in range(2):
        director.say("copied", 2)
        assert director.gone


def taken(ours: socket.socket) -> bytes:
    """All that waits to be read."""
    said = b""
    with suppress(BlockingIOError):
        while True:
            said += ours.recv(1 << 20, socket.MSG_DONTWAIT)
    return said


@dataclass
class StandIn:
    """In the place of a sharer: counts how often it was driven, and finds what it is told to."""

    exchange: Any = None
    driven: int = 0
    straying: list[int] = field(default_factory=list)
    wish: int | None = None

    def receive(self, now: float) -> None:
        self.driven += 1

    def step(self, now: float) -> None:
        pass

    def strays(self, now: float) -> np.ndarray[Any, np.dtype[np.uint32]]:
        found, self.straying = self.straying, []
        return np.array(found, np.uint32)

    def granted(self) -> int | None:
        found, self.wish = self.wish, None
        return found

    def report(self, now: float) -> dict[str, Any]:
        return {"received": self.driven, "datagrams": {f"outcome {n}": n for n in range(100)}}


class NoTransport:
    failed = 0

    def dropped(self) -> int:
        return 0

    def sift(self, look: object) -> None:
        assert look is None

    def filenos(self) -> list[int]:
        return []


def test_director_that_reads_nothing_keeps_nobody_waiting_and_then_hears_what_matters(
    pair: tuple[Director, socket.socket],
) -> None:
    director, ours = pair
    stand_in = StandIn(exchange=exchange(US, Wire()))
    service = Service(cast(Sharer, stand_in), cast(Transport, NoTransport()), director, 30.0)
    now = service._reported_at
    rounds = 1000
    for _ in range(rounds):
        now += sharer_module.REPORT_S
        service._work(now)
    assert not director.flush(), "nobody reads"
    for stand_in.straying, stand_in.wish in (([5], 1), ([5, 6], 2)):
        service._work(now)
    assert stand_in.driven == rounds + 2, "it goes on sharing"
    said = taken(ours)
    service._work(now + sharer_module.REPORT_S)
    *stale, strays, copied, last = map(sharer_messages.parse, (said + taken(ours)).splitlines())
    assert 1 < len(stale) < rounds and all(isinstance(message, Report) for message in stale)
    assert isinstance(strays, Strays) and isinstance(last, Report)
    assert strays.words.tolist() == [5, 6]
    assert copied == Copied(2)
    assert last.numbers["received"] == rounds + 3


def test_copy_is_said_to_have_come_after_all_of_its_strays(
    pair: tuple[Director, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it the director announces, and where slots must be looked up it has to know before."""
    monkeypatch.setattr(sharer_module, "_MOST_STRAYS", 2)
    director, ours = pair
    stand_in = StandIn(exchange=exchange(US, Wire()), wish=1)
    service = Service(cast(Sharer, stand_in), cast(Transport, NoTransport()), director, 30.0)
    said = []
    for stand_in.straying in ([1, 2], [3]):
        service._work(service._reported_at)
        said.append([type(sharer_messages.parse(line)) for line in taken(ours).splitlines()])
    assert said == [[Strays], [Strays, Copied]]


@dataclass
class Wire:
    """Takes what is sent to the other one, in the place of sockets."""

    sent: list[bytes] = field(default_factory=list)
    waiting: list[bytes] = field(default_factory=list)

    def send(self, data: bytes, address: Address | None = None) -> None:
        self.sent.append(data)

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        for data in self.waiting:
            yield memoryview(data), ("198.18.0.2", 9), True
        self.waiting = []


def exchange(own: tuple[int, int], wire: Wire) -> Exchange:
    codec = Codec([KEY], CLUSTER, *own)
    return Exchange(codec, cast(Transport, wire), Peering(*own, 0.0), 1400)


class Two:
    """Both have heard each other, and given each other a copy."""

    def __init__(self) -> None:
        self.wires = Wire(), Wire()
        self.nodes = exchange(US, self.wires[0]), exchange(THEM, self.wires[1])
        self.now = 0.0
        assert self.pass_time(1.0) == {0: 1, 1: 1}
        assert self.pass_time(5.0) == {}

    def pass_time(self, seconds: float) -> Counter[int]:
        """How often each was asked for a copy."""
        asked: Counter[int] = Counter()
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for number, node in enumerate(self.nodes):
                node.receive(self.now)
                node.tick(self.now)
                while node.copies:
                    asked[number] += 1
                    node.end_copy(node.copies.popleft())
                node.flush(self.now)
                self.wires[1 - number].waiting += self.wires[number].sent
                self.wires[number].sent = []
        return asked


def test_what_was_never_told_is_loss_to_the_peer_who_asks_for_a_copy() -> None:
    two = Two()
    two.nodes[0].put(np.zeros(1, RECORD))
    assert two.pass_time(2.0) == {}
    two.nodes[0].leave_gap()
    two.nodes[0].put(np.zeros(1, RECORD))
    assert two.pass_time(0.5) == {0: 1}
    assert two.nodes[1].peering.lost == 1
    assert two.pass_time(100.0) == {}


def test_what_is_sent_is_counted_and_waits_no_more() -> None:
    wire = Wire()
    made = exchange(US, wire)
    made.put(np.zeros(200, RECORD))
    assert made.queued == 200
    for now in (1.0, 1.1):
        made.flush(now)
    assert (made.queued, made.counts.records_sent, made.counts.sent) == (0, 200, 3)
    assert made.counts.bytes_sent == 200 * RECORD.itemsize + 3 * (HEADER_BYTES + MAC_BYTES)
    assert made.counts.bytes_sent == sum(map(len, wire.sent))


def test_no_burst_is_larger_than_receivers_buffers_however_long_nothing_was_sent() -> None:
    made = exchange(US, Wire())
    made.put(np.zeros(QUEUE, RECORD))
    for now in (0.0, 1000.0):
        made.flush(now)
    assert 0 <= made.counts.records_sent - BURST_S * SEND_RATE < 100


def test_a_long_copy_is_vouched_for_every_second() -> None:
    """Or what is sent after FRESH_S of it would not count."""
    wire = Wire()
    made, reader = exchange(US, wire), Codec([KEY], CLUSTER, *THEM)
    for tenth in range(30):
        made.put(np.zeros(1, RECORD), Recipient(addressee(*THEM)))
        made.flush(tenth / 10)
    opened = [reader.open(data) for data in wire.sent]
    kinds = Counter(datagram.kind for datagram in opened if isinstance(datagram, Datagram))
    assert kinds == {Kind.HELLO: 3, Kind.FLOWS: 30}


def test_who_asks_again_before_its_copy_has_begun_gets_one() -> None:
    two = Two()
    giver, asker = two.nodes
    for _ in range(3):
        two.now += 0.1
        asker.peering.want_copy(at_once=True)
        asker.tick(two.now)
        two.wires[0].waiting += two.wires[1].sent
        two.wires[1].sent = []
        giver.receive(two.now)
        giver.tick(two.now)
    assert [recipient.to for recipient in giver.copies] == [addressee(*THEM)]
