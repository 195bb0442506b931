"""Flows of other balancers into the flow table, and our own out of it: the programs in the kernel.

The rule of whose word holds is held against its restatement in vc5py/core/flowsync.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.bench.rig import ACK, VIP4, Harness, Order, Ours, Stream
from vc5py.core import flowsync
from vc5py.core.flowsync import RECORD, Opinion, Records
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState, LearnResult
from vc5py.dataplane.compiler import ProgramType
from vc5py.dataplane.export import Exporter, Walk
from vc5py.dataplane.learn import Importer, Learned
from vc5py.dataplane.names import Names

ENTRIES = 1 << 12
LOG = 1 << 10
LOCAL = (1 << abi.FLOW_LOCAL_BITS) - 1
STATES = (FlowState.UNPROVEN, FlowState.PROVING, FlowState.CLOSING, FlowState.ESTABLISHED, FlowState.STREAM)


@dataclass
class Rig:
    """The benchmark's services, of which the first one is used; `identities` by local index."""

    ours: Ours
    names: Names
    importer: Importer
    exporter: Exporter

    def __post_init__(self) -> None:
        self.maps = self.ours.maps
        self.service = int(np.flatnonzero(self.maps.services["identity"])[0])
        self.base = int(self.maps.services["backends"][self.service]) & 0xFFFFFFFF
        self.identities = self.maps.backends["identity"][self.base : self.base + 16].astype(np.uint32)

    @property
    def now(self) -> int:
        return self.ours.clock.now()

    def kernels_now(self) -> int:
        """By the clock that the programs read, which may tick a moment before ours."""
        self.learn((1 << 63, 0, FlowState.UNPROVEN, 0))
        value = self.find(1 << 63)
        assert value is not None
        return value >> abi.FLOW_TICK_SHIFT & 0xFFFF

    def put(self, hash_: int, local: int, state: int, age: int, *, learned: bool = False) -> None:
        """An entry, in the first way of the flow's first set."""
        low = self.service << abi.FLOW_SERVICE_SHIFT | local | state << abi.FLOW_STATE_SHIFT
        tick = (self.now - age & 0xFFFF) << abi.FLOW_TICK_SHIFT
        value = abi.FLOW_VALID | low | tick | (abi.FLOW_LEARNED if learned else 0)
        entry = self.maps.flows[hash_ % len(self.maps.flows)]
        entry["value"][0], entry["tag"][0] = value, value ^ hash_

    def find(self, hash_: int) -> int | None:
        """The value of a flow's entry."""
        sets = len(self.maps.flows)
        for index in (hash_ % sets, (hash_ >> 24) % sets):
            for entry in self.maps.flows[index]:
                value = int(entry["value"])
                if value & abi.FLOW_VALID and value ^ int(entry["tag"]) == hash_:
                    return value
        return None

    def learn(self, *flows: tuple[int, int, int, int]) -> Learned:
        """(hash, local, state, age in ticks) each."""
        records = np.zeros(len(flows), RECORD)
        for record, (hash_, local, state, age) in zip(records, flows, strict=True):
            record["hash"], record["identity"] = hash_, self.identities[local]
            record["state"], record["age"] = state, round(age * self.ours.clock.tick_s)
        return self.importer.learn(records)

    def named(self, hash_: int) -> int:
        """The backend that the flow's slot names."""
        word = int(self.maps.services["table"][self.service])
        mask = (1 << (word >> abi.TABLE_LOG2_SHIFT & 31)) - 1
        start = (word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE
        return int(self.maps.slots.reshape(-1)[start + (hash_ >> 40 & mask)])


@pytest.fixture(scope="module")
def built() -> Iterator[Rig]:
    ours = Ours(ENTRIES, log=LOG)
    program = ours.load(abi.XDP_DIR / "vc5.c", "vc5_learn", ProgramType.TC)
    names = Names(ours.maps)
    yield Rig(
        ours, names, Importer(ours.maps, names, ours.clock, program), Exporter(ours.maps, names, ours.clock)
    )
    os.close(program)
    ours.close()


@pytest.fixture
def rig(built: Rig) -> Rig:
    built.ours.forget_flows()
    built.maps.flow_log_heads[:] = 0
    return built


def only(learned: Learned) -> LearnResult:
    [result] = np.flatnonzero(learned.results)
    return LearnResult(int(result))


def test_new_flow_is_added_with_its_state_and_age(rig: Rig) -> None:
    hash_ = 0x1234_5678_9ABC_DEF1
    assert only(rig.learn((hash_, 3, FlowState.ESTABLISHED, 40))) is LearnResult.ADDED
    value = rig.find(hash_)
    assert value is not None
    assert value & LOCAL == 3
    assert value >> abi.FLOW_STATE_SHIFT & 7 == FlowState.ESTABLISHED
    assert value & abi.FLOW_LEARNED
    assert abs((rig.now - (value >> abi.FLOW_TICK_SHIFT) & 0xFFFF) - 40) <= 1


def test_flow_of_the_slots_own_backend_is_no_stray(rig: Rig) -> None:
    for hash_ in (1 << 40, 2 << 40, 3 << 40):
        named = rig.named(hash_)
        other = (named + 1) % 16
        assert not len(rig.learn((hash_ | 1, named, FlowState.ESTABLISHED, 0)).strays)
        assert rig.learn((hash_ | 2, other, FlowState.ESTABLISHED, 0)).strays.tolist() == [
            rig.service << 16 | hash_ >> 40
        ]


def test_known_stray_in_a_stable_slot_is_told_again_and_in_an_unstable_one_not(rig: Rig) -> None:
    hash_ = 5 << 40 | 7
    other = (rig.named(hash_) + 1) % 16
    assert len(rig.learn((hash_, other, FlowState.ESTABLISHED, 0)).strays)
    again = rig.learn((hash_, other, FlowState.ESTABLISHED, 0))
    assert only(again) is LearnResult.KEPT
    assert len(again.strays) == 1
    rig.ours.dataplane.disturb(again.strays)
    try:
        assert rig.named(hash_) & abi.SLOT_UNSTABLE
        assert not len(rig.learn((hash_, other, FlowState.ESTABLISHED, 0)).strays)
        assert len(rig.learn((hash_ + 1, other, FlowState.ESTABLISHED, 0)).strays) == 1  # a new one
    finally:
        word = int(rig.maps.services["table"][rig.service])
        rig.ours.dataplane._tables.view(word)[5] &= ~np.uint16(abi.SLOT_UNSTABLE)


@pytest.mark.parametrize("state", [FlowState.FRAGMENT, 6, 7, 200])
def test_what_is_no_flow_is_ignored(rig: Rig, state: int) -> None:
    assert only(rig.learn((99, 1, state, 0))) is LearnResult.UNKNOWN
    assert not rig.maps.flows["value"].any()


def test_unknown_identities_and_dead_flows_are_ignored(rig: Rig) -> None:
    records = np.zeros(2, RECORD)
    records["hash"], records["identity"] = (1, 2), (0xDEADBEEF, 0)
    assert only(rig.importer.learn(records)) is LearnResult.UNKNOWN
    assert only(rig.learn((3, 1, FlowState.CLOSING, 200))) is LearnResult.EXPIRED
    assert not rig.maps.flows["value"].any()


def test_backend_that_is_gone_learns_nothing(rig: Rig) -> None:
    """Though the names that we go by are of a moment ago."""
    links = rig.maps.backends["link"]
    before = int(links[rig.base + 4])
    links[rig.base + 4] = abi.BACKEND_RESTING << 48
    try:
        assert only(rig.learn((3, 4, FlowState.ESTABLISHED, 0))) is LearnResult.UNKNOWN
        names = Names(rig.maps)
        assert not names.owners(rig.identities[4:5])[1].any()
    finally:
        links[rig.base + 4] = before


def test_what_is_not_established_displaces_nothing(rig: Rig) -> None:
    full = [(n * len(rig.maps.flows) << 24) + 5 for n in range(1, 9)]  # one first set; the second is set 0
    for way in range(abi.FLOW_WAYS):
        for index in (5, 0):
            hash_ = full[way] + (index == 0)
            rig.put(hash_, 1, FlowState.UNPROVEN, 1)
            rig.maps.flows[index, way] = rig.maps.flows[hash_ % len(rig.maps.flows), 0]
    rig.maps.settings["flags"] |= abi.SETTING_CROWDED  # nobody is moved
    before = rig.maps.flows.copy()
    newcomer = len(rig.maps.flows) * 77 << 24 | 5
    assert only(rig.learn((newcomer, 2, FlowState.PROVING, 0))) is LearnResult.NO_ROOM
    assert (rig.maps.flows == before).all()
    assert only(rig.learn((newcomer, 2, FlowState.ESTABLISHED, 0))) is LearnResult.ADDED
    rig.maps.settings["flags"] &= np.uint32(~abi.SETTING_CROWDED & 0xFFFFFFFF)


def test_established_flows_are_displaced_by_none(rig: Rig) -> None:
    for index in (5, 0):
        for way in range(abi.FLOW_WAYS):
            rig.put(len(rig.maps.flows) * (way + 3) << 24 | index, 1, FlowState.ESTABLISHED, 500)
            rig.maps.flows[index, way] = rig.maps.flows[index, 0]
    before = rig.maps.flows.copy()
    newcomer = len(rig.maps.flows) * 77 << 24 | 5
    assert only(rig.learn((newcomer, 2, FlowState.ESTABLISHED, 0))) is LearnResult.NO_ROOM
    assert (rig.maps.flows == before).all()


def test_room_is_made_by_moving_a_flow_but_not_in_a_crowded_table(rig: Rig) -> None:
    sets = len(rig.maps.flows)
    for index in (5, 0):
        for way in range(abi.FLOW_WAYS):
            rig.put(sets * (way + 3) << 24 | index, 1, FlowState.ESTABLISHED, 500)
            rig.maps.flows[index, way] = rig.maps.flows[index, 0]
    movable, newcomer = sets * 9 + 1 << 24 | 5, (sets * 77 << 24 | 5, 2, FlowState.PROVING, 0)
    rig.put(movable, 1, FlowState.ESTABLISHED, 500)
    rig.maps.settings["flags"] |= abi.SETTING_CROWDED
    try:
        assert only(rig.learn(newcomer)) is LearnResult.NO_ROOM
    finally:
        rig.maps.settings["flags"] &= np.uint32(~abi.SETTING_CROWDED & 0xFFFFFFFF)
    assert only(rig.learn(newcomer)) is LearnResult.ADDED
    assert rig.find(movable) is not None
    assert rig.find(newcomer[0]) is not None


@pytest.mark.parametrize("learned", [False, True])
def test_whose_flow_it_is_goes_by_who_saw_it_last(rig: Rig, learned: bool) -> None:
    for age, told_age, whose in ((0, 20, learned), (30, 5, True)):
        rig.put(9, 3, FlowState.UNPROVEN, age, learned=learned)
        assert only(rig.learn((9, 3, FlowState.ESTABLISHED, told_age))) is LearnResult.UPDATED
        assert bool((rig.find(9) or 0) & abi.FLOW_LEARNED) is whose


def test_entry_of_another_service_is_taken_over_though_its_backend_has_the_same_number(rig: Rig) -> None:
    rig.put(9, 3, FlowState.ESTABLISHED, 0)
    entry = rig.maps.flows[9]
    entry["value"][0] += np.uint64(1 << abi.FLOW_SERVICE_SHIFT)
    entry["tag"][0] = entry["value"][0] ^ np.uint64(9)
    assert only(rig.learn((9, 3, FlowState.UNPROVEN, 50))) is LearnResult.TAKEN
    value = rig.find(9) or 0
    assert value >> abi.FLOW_SERVICE_SHIFT & (1 << abi.FLOW_SERVICE_BITS) - 1 == rig.service


def test_there_are_no_strays_where_slots_say_nothing_of_flows(rig: Rig) -> None:
    other = (rig.named(5 << 40) + 1) % 16
    for by_flow in (True, False):
        rig.ours.by_flow(by_flow)
        told = rig.learn((5 << 40 | 7 + by_flow, other, FlowState.ESTABLISHED, 0))
        assert len(told.strays) == (0 if by_flow else 1)


def test_flow_whose_backend_is_down_here_is_learned_but_wins_over_none_that_is_up(rig: Rig) -> None:
    links = rig.maps.backends["link"]
    before = int(links[rig.base + 2])
    links[rig.base + 2] = before & ~(abi.BACKEND_UP << 48)
    try:
        assert only(rig.learn((3, 2, FlowState.ESTABLISHED, 0))) is LearnResult.ADDED
        rig.put(4, 1, FlowState.UNPROVEN, 100)
        assert only(rig.learn((4, 2, FlowState.ESTABLISHED, 0))) is LearnResult.KEPT
        rig.put(5, 2, FlowState.ESTABLISHED, 0)
        assert only(rig.learn((5, 1, FlowState.UNPROVEN, 100))) is LearnResult.TAKEN
    finally:
        links[rig.base + 2] = before


@pytest.mark.parametrize("seed", range(3))
def test_whose_word_holds_is_as_restated(rig: Rig, seed: int) -> None:
    """All pairs of states, ages on both sides of every bound."""
    source = random.Random(seed)
    results = set()
    for n in range(1500):
        hash_ = source.getrandbits(64) | 1
        ours, theirs = source.choice([(1, 1), (1, 2), (2, 1), (5, 9), (9, 5)])
        state, their_state = source.choice(STATES), source.choice(STATES)
        age = source.choice([0, 1, 5, 9, 100, 126, 131, 300])
        their_age = max(0, age + source.choice([-200, -30, -3, -2, -1, 0, 1, 2, 3, 30, 200]))
        rig.ours.forget_flows()
        tick = rig.kernels_now()
        if rig.now != tick:
            continue
        rig.put(hash_, ours, state, age)
        result = only(rig.learn((hash_, theirs, their_state, their_age)))
        value = rig.find(hash_)
        if rig.kernels_now() != tick:
            continue  # the clock has moved in between
        assert value is not None, n
        got = value & LOCAL, value >> abi.FLOW_STATE_SHIFT & 7, tick - (value >> abi.FLOW_TICK_SHIFT) & 0xFFFF
        assert got == expected(rig, (ours, state, age), (theirs, their_state, their_age)), (n, result)
        results.add(result)
    assert results == {LearnResult.KEPT, LearnResult.TAKEN, LearnResult.UPDATED, LearnResult.EXPIRED}


def expected(rig: Rig, ours: tuple[int, int, int], theirs: tuple[int, int, int]) -> tuple[int, int, int]:
    """What becomes of an entry: its backend, state and age."""
    (local, state, age), (their_local, their_state, their_age) = ours, theirs
    tick_s = rig.ours.clock.tick_s
    their_age = round(round(their_age * tick_s) / tick_s)  # ages are told in seconds
    if their_age > int(rig.maps.settings["timeout"][0, their_state]):
        return ours
    if local == their_local:
        newer = age - their_age
        if newer <= 0 and flowsync.merged(state, their_state, newer) == state:
            return ours
        return local, flowsync.merged(state, their_state, newer), min(age, their_age)
    mine = Opinion(int(rig.identities[local]), -age, state)
    peers = Opinion(int(rig.identities[their_local]), -their_age, their_state)
    return (*theirs[:2], their_age) if flowsync.prefers(peers, mine, 0) else ours


# Out of it


def hashes_of(records: Records) -> list[int]:
    return sorted(int(hash_) for hash_ in records["hash"])


def test_packets_that_make_or_change_flows_are_told_once(rig: Rig) -> None:
    harness = Harness()
    try:
        rig.ours.by_flow(True)
        stream = Stream(VIP4, ACK, 256, Order.SEQUENTIAL)
        harness.run(rig.ours.program, stream, 256)
        told = rig.exporter.changed(1 << 20)
        entries = rig.maps.flows.reshape(-1)
        values, tags = entries["value"].copy(), entries["tag"].copy()
        used = values != 0
        assert hashes_of(told) == sorted((values ^ tags)[used].tolist())
        assert len(told) == 256
        assert set(told["identity"].tolist()) <= set(rig.identities.tolist())
        assert (told["state"] == FlowState.UNPROVEN).all()
        assert (told["age"] <= 1).all()
        harness.run(rig.ours.program, stream, 256)
        again = rig.exporter.changed(1 << 20)
        assert (again["state"] == FlowState.PROVING).all()  # those that were seen in a second tick, if any
        assert rig.exporter.missed == 0
    finally:
        rig.ours.by_flow(False)
        harness.close()


def test_ring_that_overflows_loses_the_oldest_and_says_so(rig: Rig) -> None:
    head = rig.maps.flow_log_heads
    for cpu in range(rig.maps.sizes.cpus):
        head["written"][cpu] = LOG + 10
    missed = rig.exporter.missed
    rig.exporter.changed(LOG)
    assert rig.exporter.missed - missed == 10 * rig.maps.sizes.cpus
    assert (head["read"] == LOG + 10).all()
    head["written"][0] += 7
    rig.exporter.changed(5)  # no more than asked for
    assert int(head["read"][0]) == LOG + 15


def test_walk_tells_every_live_flow_of_ours_and_all_on_request(rig: Rig) -> None:
    rig.put(1, 1, FlowState.ESTABLISHED, 10)
    rig.put(2, 2, FlowState.UNPROVEN, 3)
    rig.put(3, 3, FlowState.ESTABLISHED, 10, learned=True)
    rig.put(4, 3, FlowState.CLOSING, 100)
    rig.put(5, 3, FlowState.FRAGMENT, 0)
    sets = len(rig.maps.flows)
    for learned, flows in ((False, [1, 2]), (True, [1, 2, 3])):
        walk = Walk(rig.exporter, sets, learned=learned)
        found: list[int] = []
        for _ in range(1000):
            found += hashes_of(walk.advance(0.11, sets))
            if walk.at_start:
                break
        assert found == flows


def test_own_packets_make_a_learned_flow_our_own(rig: Rig) -> None:
    harness = Harness()
    try:
        stream = Stream(VIP4, ACK, 1)
        rig.ours.by_flow(True)
        harness.run(rig.ours.program, stream, 1)
        [hash_] = hashes_of(rig.exporter.changed(10))
        rig.ours.forget_flows()
        rig.put(hash_, 6, FlowState.ESTABLISHED, 30, learned=True)
        harness.run(rig.ours.program, stream, 1)
        value = rig.find(hash_)
        assert value is not None
        assert value & LOCAL == 6
        assert not value & abi.FLOW_LEARNED
        assert not len(rig.exporter.changed(10))  # it is as it was: the next walk tells of it
    finally:
        rig.ours.by_flow(False)
        harness.close()
