"""The sharing process' own parts: how it is told what to do, and what peers see of what it could not tell."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from vc5py.core.flowsync import RECORD, Codec, Key, cluster_id
from vc5py.core.peering import Peering
from vc5py.peers.exchange import Exchange
from vc5py.peers.transport import Address, Transport
from vc5py.sharer import Director

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
