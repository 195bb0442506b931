"""What the sharing process does at each step, over maps of its own: what it tells, repeats and reports."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from vc5py import sharer as sharing
from vc5py.core.flowsync import EVERYBODY, Codec, Key, Kind, cluster_id
from vc5py.core.peering import Peer, Peering
from vc5py.dataplane import abi, maps
from vc5py.dataplane.abi import FlowState
from vc5py.dataplane.ticks import TickClock
from vc5py.peers.exchange import Exchange, Recipient
from vc5py.peers.transport import Address, Places, Transport
from vc5py.sharer import Order, Sharer

RING, ROOM = 64, 16
TICKS = TickClock(250)
SIZES = maps.Sizes(
    flow_sets=64,
    services=128,
    backends=64,
    slot_lines=64,
    service_sets4=16,
    service_sets6=16,
    cpus=maps.running_cpus(),
    interfaces=16,
    log=RING,
)
NOW = 100.0


@dataclass
class Wire:
    """In the place of sockets: what was sent, as (kind, addressee, sequence, records)."""

    sent: list[tuple[int, int, int, int]] = field(default_factory=list)

    def send(self, data: bytes, address: Address | None = None) -> None:
        _, _, kind, count, _, to, _, _, sequence = struct.unpack_from("<4sBBHIIQQQ", data)
        self.sent.append((kind, to, sequence, count))

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        yield from ()


@dataclass
class Rig:
    """One service with one backend."""

    maps: maps.Maps
    sharer: Sharer
    wire: Wire
    now: float = NOW

    def step(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.sharer.step(self.now)
        self.sharer.exchange.flush(self.now)

    def put(self, hash_: int, *, learned: bool = False) -> None:
        value = abi.FLOW_VALID | TICKS.now() << abi.FLOW_TICK_SHIFT
        value |= FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT | (abi.FLOW_LEARNED if learned else 0)
        self.maps.flows[hash_ % SIZES.flow_sets, 0] = (hash_ ^ value, value)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made, wire = maps.create(SIZES), Wire()
    try:
        made.services["identity"][0] = 1
        made.services["backends"][0] = ROOM << abi.BACKEND_ROOM_SHIFT
        made.backends["identity"][0] = 77
        made.settings["timeout"][0] = 1000
        keys = (Key.derive(b"the secret of the tests"),)
        order = Order(made.fds, SIZES, TICKS, -1, Places(9), cluster_id("tests"), 1, keys, 1400)
        codec = Codec(keys, order.cluster, order.node, 11)
        exchange = Exchange(codec, cast(Transport, wire), Peering(1, 11, NOW), order.datagram)
        yield Rig(made, Sharer(order, exchange, NOW), wire)
    finally:
        made.close()


def test_stray_slots_are_reported_once_a_second_and_so_many_at_a_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_MOST_STRAYS", 8)
    for now, found in ((NOW, [[*range(8)], [8, 9], []]), (NOW + 0.9, [[]]), (NOW + 1.0, [[*range(8)]])):
        rig.sharer._strays.append(np.arange(10, dtype=np.uint32))
        assert [rig.sharer.strays(now).tolist() for _ in found] == found


def test_strays_that_nobody_asks_for_are_bounded_and_made_up_for_by_a_copy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_MOST_WAITING", 100)
    copies = rig.sharer.exchange.peering._copies
    copies.has_come(NOW)
    for _ in range(50):
        rig.sharer._stray(np.arange(50, dtype=np.uint32))
        assert rig.sharer._straying <= 200
    assert rig.sharer.strays(NOW).tolist() == [*range(50)]
    assert copies.copied, "none was forgotten"
    for first in range(0, 1000, 50):
        rig.sharer._stray(np.arange(first, first + 50, dtype=np.uint32))
        assert rig.sharer._straying <= 200
    rig.sharer.strays(NOW)
    assert not copies.copied


def test_walk_takes_half_of_the_shortest_timeout_or_longer_in_a_large_table(rig: Rig) -> None:
    timeouts = rig.maps.settings["timeout"][0]
    timeouts[[FlowState.UNPROVEN, FlowState.STREAM, FlowState.ESTABLISHED]] = 10, 20, 100
    timeouts[FlowState.CLOSING] = 1
    for live, ticks in ((0.0, 5.0), (20 * TICKS.tick_s * sharing.WALK_RATE, 20.0), (1e12, 50.0)):
        rig.sharer._live = live
        assert rig.sharer._period_s() == pytest.approx(ticks * TICKS.tick_s)


def test_what_was_written_over_leaves_a_gap(rig: Rig) -> None:
    rig.step()
    rig.maps.flow_log_heads["written"][0] = RING + 1
    rig.step(1.0)
    rig.step(1.0)
    assert [sequence for _, _, sequence, _ in rig.wire.sent] == [0, 1, 3, 4]


def test_new_backends_are_a_reason_for_a_copy(rig: Rig) -> None:
    copies = rig.sharer.exchange.peering._copies
    copies.has_come(rig.now)
    rig.step(1.0)
    assert copies.copied
    rig.maps.backends["identity"][1] = 78
    rig.step(1.0)
    assert not copies.copied


def test_copy_has_what_was_learned_too_and_is_said_to_be_at_its_end(rig: Rig) -> None:
    rig.put(5)
    rig.put(6, learned=True)
    rig.sharer.exchange.copies.append(Recipient(9))
    for _ in range(50):
        rig.step()
    assert [(kind, count) for kind, to, _, count in rig.wire.sent if to == 9 and kind != Kind.HELLO] == [
        (Kind.FLOWS, 2),
        (Kind.COPIED, 0),
    ]
    assert sum(count for kind, to, _, count in rig.wire.sent if (kind, to) == (Kind.FLOWS, EVERYBODY)) == 0


def test_only_who_hears_us_is_shown_as_a_peer(rig: Rig) -> None:
    rig.sharer.exchange.peering.peers = {7: Peer(1, NOW), 8: Peer(1, NOW, proven=False)}
    assert list(rig.sharer.report(NOW)["peers"]) == [f"{7:016x}"]
