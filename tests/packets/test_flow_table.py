"""The flow table as a whole: how full it gets, floods of millions against established flows, two writers at a
time, torn entries, and the clock's wrap-around.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.packets.clocked import Kernel, KernelBench, frame_of
from tests.unit.test_stability_model import SIZES
from vc5py.core.flowhash import table_slot
from vc5py.dataplane import abi, libbpf
from vc5py.dataplane.abi import FlowState
from vc5py.dataplane.tables import first_slot, size
from vc5py.model import Protocol, Scheduling

CAPACITY = SIZES.flow_sets * abi.FLOW_WAYS
# Established connections, in proportion to the entries -> the least share of them that must have an entry,
# and the least share of the entries that must be in their first set: found within one cache line.
OCCUPANCY = {
    0.25: (1.0, 0.995),
    0.5: (0.999, 0.955),
    0.8: (0.99, 0.845),
    0.9: (0.975, 0.8),
    1.0: (0.935, 0.77),
}
SYN, ACK = 0x02, 0x10
FLOOD = 10_000_000
FORWARDED = {
    "forwarded_flow",
    "forwarded_new",
    "forwarded_stable",
    "forwarded_previous",
    "forwarded_unrecorded",
}
_VALID = np.uint64(abi.FLOW_VALID)
_STATE_MASK = np.uint64((1 << abi.FLOW_STATE_BITS) - 1 << abi.FLOW_STATE_SHIFT)
_ESTABLISHED = np.uint64(FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT)


@pytest.fixture(scope="module")
def clocked() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.fixture
def bench(clocked: Kernel) -> KernelBench:
    """One service of eight reals that goes by flow: every packet is looked up, whatever the slot."""
    clocked.clear()
    one = KernelBench(kernel=clocked)
    one.scheduling[0] = Scheduling.LEAST_CONNS
    one.change(0, dict.fromkeys(range(8), "up"))
    clocked.set_clock(one.tick())
    return one


def kernel_of(bench: KernelBench) -> Kernel:
    assert bench.kernel
    return bench.kernel


def hashes(bench: KernelBench) -> NDArray[np.uint64]:
    entries = bench.maps.flows
    found: NDArray[np.uint64] = (entries["tag"] ^ entries["value"])[entries["value"] & _VALID != 0]
    return found


def establish(bench: KernelBench, count: int) -> int:
    """Opens that many connections, all entries established at once; returns how many have an entry."""
    for _ in range(0, count, 64):  # few at a time: an unproven one would give way to the next
        bench.open(0, min(64, count - len(bench.connections)), Protocol.TCP, 1, syn=True)
        entries = bench.maps.flows
        state = entries["value"] & _STATE_MASK
        # Tag and value change together: the hash stays.
        change = np.where(entries["value"] & _VALID, state ^ _ESTABLISHED, np.uint64(0))
        entries["value"] ^= change
        entries["tag"] ^= change
    known = np.array([c.hash() for c in bench.connections], dtype=np.uint64)
    return int(np.isin(known, hashes(bench)).sum())


def share_in_first_set(bench: KernelBench) -> float:
    """Of all entries those that a look-up finds without reading a second cache line."""
    entries = bench.maps.flows
    used = entries["value"] & _VALID != 0
    first_sets = (entries["tag"] ^ entries["value"]) & np.uint64(len(entries) - 1)
    first = used & (first_sets == np.arange(len(entries), dtype=np.uint64)[:, np.newaxis])
    return float(first.sum() / used.sum())


@pytest.mark.parametrize(("load", "least"), OCCUPANCY.items())
def test_occupancy(bench: KernelBench, load: float, least: tuple[float, float]) -> None:
    """How many of so many established connections, in proportion to the entries, have an entry, and how many
    of these cost one cache line.
    """
    wanted = round(CAPACITY * load)
    stored = establish(bench, wanted)
    first = share_in_first_set(bench)
    print(f"load {load:.0%}: {stored / wanted:.3%} of {wanted} flows stored, {first:.1%} in their first set")
    assert stored / wanted >= least[0]
    assert first >= least[1]
    assert len(np.unique(hashes(bench))) == len(hashes(bench)), "moved entries are not left behind"


@pytest.mark.parametrize("flags", [SYN, ACK])
def test_established_flows_survive_a_flood(bench: KernelBench, flags: int) -> None:
    """Ten million packets of random clients against a table for 4,096, half of it established."""
    establish(bench, CAPACITY // 2)
    known = np.sort(hashes(bench))
    went = [connection.real for connection in bench.connections]
    verdicts = kernel_of(bench).flood(frame_of(bench.connections[0], flags), FLOOD)
    assert verdicts.keys() <= FORWARDED
    assert sum(verdicts.values()) == FLOOD
    assert np.isin(known, hashes(bench)).all()
    assert len(hashes(bench)) == CAPACITY, "the flood fills what is free"
    bench.all_talk()
    assert [connection.real for connection in bench.connections] == went


def test_unproven_flows_give_way_to_newer_ones(bench: KernelBench) -> None:
    kernel = kernel_of(bench)
    bench.open(0, 1, Protocol.TCP, 1, syn=True)
    kernel.flood(frame_of(bench.connections[0], SYN), 4 * CAPACITY)
    verdicts = kernel.flood(frame_of(bench.connections[0], SYN), 1000)
    assert verdicts == {"forwarded_new": 1000}
    bench.open(0, 1, Protocol.TCP, 1, syn=True)
    assert bench.connections[-1].hash() in hashes(bench)


def test_full_table_still_forwards_and_counts(bench: KernelBench) -> None:
    """Every entry belongs to an established flow: nothing is recorded, everything arrives."""
    kernel = kernel_of(bench)
    bench.scheduling[0] = Scheduling.MAGLEV
    bench.apply()
    establish(bench, CAPACITY // 4)
    kernel.flood(frame_of(bench.connections[0], SYN), 20 * CAPACITY)
    entries = bench.maps.flows
    state = entries["value"] & _STATE_MASK
    entries["value"] ^= state ^ _ESTABLISHED
    entries["tag"] ^= state ^ _ESTABLISHED
    full = entries.copy()
    packets = bench.maps.backend_counts["packets"].sum()
    verdicts = kernel.flood(frame_of(bench.connections[0], SYN), 10_000)
    assert verdicts == {"forwarded_unrecorded": 10_000}
    assert bench.maps.backend_counts["packets"].sum() == packets + 10_000
    assert set(hashes(bench).tolist()) == set((full["tag"] ^ full["value"]).ravel().tolist())
    bench.open(0, 20, Protocol.UDP, 1, syn=False)
    for _ in range(3):
        for connection in bench.connections[-20:]:
            bench.talk(connection)


@pytest.mark.parametrize("spoilt", ["tag", "value"])
def test_torn_entry_is_a_miss(bench: KernelBench, spoilt: str) -> None:
    """Half of a write that another CPU is about to finish."""
    kernel = kernel_of(bench)
    bench.open(0, 1, Protocol.TCP, 1, syn=True)
    frame = frame_of(bench.connections[0], ACK)
    place = np.flatnonzero(bench.maps.flows["value"].ravel())
    for bit in range(0, 64, 7):
        bench.maps.flows[spoilt].reshape(-1)[place] ^= np.uint64(1 << bit)
        before = kernel.verdicts()
        libbpf.test_run(kernel.ingress, frame, room=0)
        assert kernel.counted(before) == {"forwarded_new": 1}
        bench.maps.flows[:] = 0
        bench.talk(bench.connections[0])
        place = np.flatnonzero(bench.maps.flows["value"].ravel())


@pytest.mark.parametrize("now", [0, 5, 3000, 65535])
def test_tick_wraps_around(bench: KernelBench, now: int) -> None:
    """An established flow last seen before the wrap is as old as it is, and kept for its 3,600 s."""
    kernel = kernel_of(bench)
    for age, kept in ((3599, True), (3601, False), (20000, False)):
        bench.maps.flows[:] = 0
        bench.connections.clear()
        bench.now_s = 65536 + now - age
        establish(bench, 64)
        known = hashes(bench)
        bench.now_s = 65536.0 + now
        kernel.set_clock(bench.tick())
        kernel.flood(frame_of(bench.connections[0], SYN), 50 * CAPACITY)
        assert bool(np.isin(known, hashes(bench)).all()) == kept
        if not kept:
            assert not np.isin(known, hashes(bench)).any()


def test_two_cpus_write_the_same_sets() -> None:
    """8 entries for 4,096 clients: no packet is lost, no flow gets another one's backend, and the established
    one stays where it is.
    """
    with Kernel(replace(SIZES, flow_sets=2)) as kernel:
        bench = KernelBench(kernel=kernel)
        bench.change(0, dict.fromkeys(range(8), "up"))
        bench.maps.services["flags"] |= abi.SERVICE_BY_FLOW  # so that all are recorded
        assert establish(bench, 1) == 1
        first = bench.connections[0]
        kernel.prepare_flood(frame_of(first, SYN), mask=0x3F00_0000)  # the low bits of address and port
        clients = [replace(first, client=IPv4Address(int(first.client) ^ n)) for n in range(64)]
        names = {replace(c, port=c.port ^ n).hash() for c in clients for n in range(64)}
        before = kernel.verdicts()
        flood_on_two_cpus(kernel, frame_of(first, SYN), 1_000_000)
        verdicts = kernel.counted(before)
        assert verdicts.keys() <= FORWARDED
        assert sum(verdicts.values()) == 2_000_000
        index = bench.service_index(0)
        assert index is not None
        word = int(bench.maps.services["table"][index])
        found = 0
        for tag, value in bench.maps.flows.ravel().tolist():
            if tag ^ value in names:  # else torn: a miss
                found += 1
                slot = first_slot(word) + table_slot(tag ^ value, size(word))
                assert value & abi.SLOT_NONE == bench.maps.slots.reshape(-1)[slot] & abi.SLOT_NONE
        assert found >= 4
        assert first.hash() in hashes(bench)
        bench.all_talk()


def test_cpu_that_came_later_counts_with_another() -> None:
    """There are counters for the CPUs that ran when the maps were made."""
    cpu = max(os.sched_getaffinity(0))
    with Kernel(replace(SIZES, cpus=1)) as kernel:
        bench = KernelBench(kernel=kernel)
        bench.change(0, {0: "up"})
        bench.open(0, 1, Protocol.TCP, 1, syn=True)
        frame = frame_of(bench.connections[0], ACK)
        before = kernel.verdicts()
        packets = bench.maps.backend_counts["packets"].sum()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(os.sched_setaffinity, 0, {cpu}).result()
            threads.submit(kernel.run_flood_of, frame, 1000).result()
        assert sum(kernel.counted(before).values()) == 1000
        assert bench.maps.backend_counts["packets"].sum() == packets + 1000


def flood_on_two_cpus(kernel: Kernel, frame: bytes, packets: int) -> None:
    """That many on each, at the same time."""
    cpus = sorted(os.sched_getaffinity(0))

    def work(number: int) -> None:
        os.sched_setaffinity(0, {cpus[number % len(cpus)]})
        kernel.run_flood(frame, packets)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))


# Loads


def starts(bench: KernelBench, count: int) -> Counter[int | None]:
    """Where so many new connections go, by what housekeeping knows of the loads."""
    bench.pass_time(2, silent=True)
    known = len(bench.connections)
    bench.open(0, count, Protocol.TCP, 10**9, syn=True)
    return Counter(connection.real for connection in bench.connections[known:])


def test_new_connections_go_where_the_flow_table_has_fewer(bench: KernelBench) -> None:
    """The better of two candidates: who has most gets what has it twice, one in 64 instead of one in 8."""
    bench.change(0, dict.fromkeys(range(1, 8), "drain"))
    assert starts(bench, 300) == {0: 300}
    bench.change(0, dict.fromkeys(range(1, 8), "up"))
    went = starts(bench, 640)
    assert went[0] < 30
    assert min(went[real] for real in range(1, 8)) > 50
    bench.maps.flows[:] = 0
    assert starts(bench, 640)[0] > 50, "its connections have ended"


@pytest.mark.parametrize(
    ("light", "heavy", "least", "most"), [(60, 300, 0.1, 0.23), (20, 300, 0.25, 0.37), (100, 300, 0.0, 0.07)]
)
def test_loads_are_in_proportion_to_weights(
    bench: KernelBench, light: int, heavy: int, least: float, most: float
) -> None:
    """Weights 1 and 5: one candidate in six is the light one. It gets (1/6)^2 of what is new where it has
    more than a fifth of the heavy one's, 1 - (5/6)^2 where it has less, and 1/6 where the loads are equal.
    """
    bench.change(0, dict.fromkeys(range(1, 8), "drain"))
    starts(bench, light)
    bench.change(0, {0: "drain", 1: "heavy"})
    starts(bench, heavy)
    bench.change(0, {0: "up"})
    assert least < starts(bench, 1000)[0] / 1000 < most
