"""Which entry a flow gets where both of its sets are full, by how crowded the table is; and slots and loads
whose backends have just changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from tests.packets import frames
from tests.packets.cases_base import REAL_12, entry, sampled_port
from tests.packets.cases_flow import LOADED
from tests.packets.harness import Kernel
from tests.packets.oracle import maglev_choice, read_tuple
from tests.packets.oracle_send import mac
from tests.packets.world import LEAST_VIP
from vc5py.dataplane import abi
from vc5py.dataplane.abi import FlowState

ESTABLISHED, UNPROVEN = FlowState.ESTABLISHED, FlowState.UNPROVEN
tcp = partial(frames.tcp, sport=sampled_port())
HASH = read_tuple(tcp()).hash


@pytest.fixture
def crowded(kernel: Kernel) -> Iterator[Kernel]:
    """Nearly full, as far as the program is told."""
    kernel.maps.settings["flags"] |= np.uint32(abi.SETTING_CROWDED)
    yield kernel
    kernel.maps.settings["flags"] &= ~np.uint32(abi.SETTING_CROWDED)


def fill(kernel: Kernel) -> tuple[int, int]:
    """Established flows in all eight entries, of which none has another place; the two sets."""
    sets = kernel.sets_of(HASH)
    assert sets[0] != sets[1]
    for number, flow_set in enumerate(sets):
        for way in range(abi.FLOW_WAYS):
            other = HASH ^ (number * abi.FLOW_WAYS + way + 1) << 50
            kernel.put_word(flow_set, way, other, kernel.value_of(entry(state=ESTABLISHED)))
    return sets


def movable(kernel: Kernel, way: int) -> int:
    """An established flow in the first set, whose other set is empty; its hash."""
    first, second = kernel.sets_of(HASH)
    other = HASH ^ 1 << 24
    assert kernel.sets_of(other) not in ((first, first), (first, second))
    kernel.put_word(first, way, other, kernel.value_of(entry(state=ESTABLISHED, age=7)))
    return other


@pytest.mark.parametrize("way", range(abi.FLOW_WAYS))
def test_full_sets_get_room_by_moving_one_that_can_move(kernel: Kernel, way: int) -> None:
    first, _ = fill(kernel)
    moved = movable(kernel, way)
    assert kernel.run(tcp()).verdict == "forwarded_new"
    tag, value = kernel.maps.flows[first, way].tolist()
    assert tag ^ value == HASH
    assert kernel.entry(moved) == entry(state=ESTABLISHED, age=7, second=True)


def test_none_is_moved_onto_a_live_one(kernel: Kernel) -> None:
    fill(kernel)
    there = kernel.sets_of(movable(kernel, 1))[1]
    for way in range(abi.FLOW_WAYS):
        kernel.put_word(there, way, way + 1, kernel.value_of(entry(state=UNPROVEN, age=3)))
    before = kernel.maps.flows.copy()
    assert kernel.run(tcp()).verdict == "forwarded_unrecorded"
    assert (kernel.maps.flows == before).all()


def test_none_is_moved_in_a_crowded_table(crowded: Kernel) -> None:
    fill(crowded)
    movable(crowded, 1)
    before = crowded.maps.flows.copy()
    assert crowded.run(tcp()).verdict == "forwarded_unrecorded"
    assert (crowded.maps.flows == before).all()


@pytest.mark.parametrize("full", [False, True])
def test_in_a_crowded_table_the_first_set_is_enough(kernel: Kernel, full: bool) -> None:
    """Where the second one would have a better place, which takes longer to find."""
    first, second = fill(kernel)
    kernel.put_word(first, 2, HASH ^ 3 << 50, kernel.value_of(entry(state=UNPROVEN)))
    kernel.maps.flows[second, 1] = (0, 0)
    kernel.maps.settings["flags"] |= np.uint32(abi.SETTING_CROWDED if full else 0)
    try:
        assert kernel.run(tcp()).verdict == "forwarded_new"
    finally:
        kernel.maps.settings["flags"] &= ~np.uint32(abi.SETTING_CROWDED)
    tag, value = kernel.maps.flows[(first, 2) if full else (second, 1)].tolist()
    assert tag ^ value == HASH


def test_a_slot_beyond_its_services_records_is_never_followed(kernel: Kernel) -> None:
    """The next record is another service's."""
    service = kernel.maps.services[0]
    room = int(service["backends"]) >> abi.BACKEND_ROOM_SHIFT
    word = int(service["table"])
    start = (word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE
    slots = kernel.maps.slots.reshape(-1)[start : start + (1 << (word >> abi.TABLE_LOG2_SHIFT))]
    before = slots.copy()
    try:
        for slot in (room, room + 1):
            slots[:] = slot
            assert kernel.run(frames.tcp(flags="A")).verdict == "no_backend"
    finally:
        slots[:] = before
    assert kernel.run(frames.tcp(flags="A")).verdict == "forwarded_stable"


def test_of_two_candidates_one_may_be_down_while_the_table_names_it(kernel: Kernel) -> None:
    """A backend that goes down says so at once; its service's table is computed after that."""
    kernel.install(LOADED)
    least = LOADED.service("least")
    links = kernel.maps.backends["link"]
    place = kernel.backend_index("least", least.real(REAL_12))
    before = int(links[place])
    links[place] = before & ~(abi.BACKEND_UP << 48)
    seen = set()
    try:
        for port in range(4000, 4060):
            frame = tcp(LEAST_VIP, sport=port)
            name = read_tuple(frame).hash
            both = [maglev_choice(least, name), maglev_choice(least, name >> 8)]  # the other slot's bits
            alive = sorted((real for real in both if real.address != REAL_12), key=lambda real: real.load)
            kernel.clear_flows()
            got = kernel.run(frame)
            seen.add(len(alive))
            assert got.verdict == ("forwarded_new" if alive else "no_backend")
            assert not alive or got.frame[:6] == mac(str(alive[0].mac))
    finally:
        links[place] = before
    assert seen == {0, 1, 2}
