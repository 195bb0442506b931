"""How often a CPU tells clients that their packets don't fit a tunnel: so often a jiffy, whoever they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.packets.clocked import Kernel
from tests.packets.frames import tags, tcp
from tests.packets.world import OUR_MAC, WORLD, Side, World, mode_vip
from tests.unit.test_stability_model import SIZES
from vc5py.dataplane import libbpf, maps
from vc5py.dataplane.kernel import KernelDataplane
from vc5py.dataplane.links import Record
from vc5py.dataplane.policy import ICMP_PER_SECOND
from vc5py.dataplane.ports import PortTable
from vc5py.dataplane.ticks import TickClock
from vc5py.model import IPAddress

ALLOWED = 3
VIPS = {4: mode_vip("gue4", 4), 6: mode_vip("gue6", 6)}
TUNNELS = World(tuple(service for service in WORLD.services if service.vip in VIPS.values()))


def install(kernel: Kernel, hz: int = 250) -> None:
    dataplane = KernelDataplane(kernel.maps, TickClock(hz))
    for service in TUNNELS.services:
        for real in service.reals:
            dataplane.set_neighbour(real.address, real.neighbour(1))
    dataplane.apply(TUNNELS.desired())
    PortTable(kernel.maps).write({1: Record(OUR_MAC[Side.NEAR], exit=1)})


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """The clock stands still, wherever it is set."""
    with Kernel(replace(SIZES, cpus=maps.running_cpus())) as one:
        install(one)
        one.maps.settings["icmp_per_jiffy"] = ALLOWED
        yield one


def too_big(vip: IPAddress, client: IPAddress, *ids: int) -> bytes:
    return tcp(vip, src=client, flags="A", payload=bytes(1460), link=tags(*ids))


def sent(kernel: Kernel, *frames: bytes) -> dict[str, int]:
    """By one CPU."""

    def work() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for frame in frames:
            libbpf.test_run(kernel.ingress, frame)

    before = kernel.verdicts()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()
    return kernel.counted(before)


def clients(family: int, count: int) -> list[IPAddress]:
    first = ip_address("198.51.100.1" if family == 4 else "2001:db8:c::1")
    return [first + n for n in range(count)]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ids", [(), (100,), (300, 100)], ids=["untagged", "q", "adq"])
def test_so_many_answers_in_a_jiffy(kernel: Kernel, family: int, ids: tuple[int, ...]) -> None:
    frames = [too_big(VIPS[family], client, *ids) for client in clients(family, 10)]
    for jiffy in (1000, 1001, 5000):
        kernel.set_clock(jiffy)
        assert sent(kernel, *frames) == {"too_big_answered": ALLOWED, "too_big": 10 - ALLOWED}
    kernel.set_clock(5000)
    assert sent(kernel, *frames) == {"too_big": 10}


def test_both_families_share_what_is_allowed(kernel: Kernel) -> None:
    kernel.set_clock(7000)
    frames = [too_big(VIPS[family], clients(family, 1)[0]) for family in (4, 6, 4, 6)]
    assert sent(kernel, *frames) == {"too_big_answered": ALLOWED, "too_big": 4 - ALLOWED}


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_the_rate_is_so_many_a_second(kernel: Kernel, hz: int) -> None:
    install(kernel, hz)
    try:
        assert int(kernel.maps.settings["icmp_per_jiffy"][0]) == ICMP_PER_SECOND // hz
    finally:
        kernel.maps.settings["icmp_per_jiffy"] = ALLOWED
