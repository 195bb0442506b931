"""The address that outer headers have, in the backends' records: as the way to the real says, over restarts
and changes of the forwarding mode.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.packets.test_kernel_dataplane import HTTP, VIP, Bench, bench
from vc5py.dataplane import abi
from vc5py.dataplane.base import Neighbour
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Forwarding,
    ForwardMode,
    IPAddress,
    ServiceState,
    VirtualServiceId,
)

__all__ = ["bench"]

REALS: tuple[IPAddress, ...] = (ip_address("10.0.0.9"), ip_address("fd00::9"))
SOURCES = {
    4: (ip_address("10.1.0.0"), ip_address("10.2.0.1")),
    6: (ip_address("fd01::"), ip_address("fd02::1")),
}
MAC = "02:00:00:00:00:09"


def wanted(real: IPAddress, mode: ForwardMode) -> Desired:
    backend = BackendState(BackendId("web", VIP, real), up=True, weight=1, forwarding=Forwarding(mode))
    return Desired((ServiceState(VirtualServiceId("web", VIP), (HTTP,), (backend,)),))


def way(source: IPAddress | None) -> Neighbour:
    return Neighbour(2, MAC, source=source)


class Record:
    """What a packet finds of the one backend."""

    def __init__(self, bench: Bench, real: IPAddress) -> None:
        _, _, index = bench.place(BackendId("web", VIP, real))
        row = bench.maps.backends[index]
        self.reachable = bool(int(row["link"]) >> 48 & abi.BACKEND_REACHABLE)
        self.source = bytes(row["source"]).ljust(16, b"\0")[: len(real.packed)]


@pytest.mark.parametrize("real", REALS, ids=["IPv4", "IPv6"])
def test_the_source_follows_the_way(bench: Bench, real: IPAddress) -> None:
    first, second = SOURCES[real.version]
    bench.dataplane.apply(wanted(real, ForwardMode.IPIP))
    for source in (first, second):
        bench.dataplane.set_neighbour(real, way(source))
        record = Record(bench, real)
        assert (record.reachable, record.source) == (True, source.packed)
    bench.dataplane.set_neighbour(real, way(None))
    assert not Record(bench, real).reachable
    bench.dataplane.set_neighbour(real, way(first))
    assert Record(bench, real).reachable


@pytest.mark.parametrize("mode", [ForwardMode.L2, ForwardMode.DSCP])
def test_without_a_tunnel_no_source_is_needed(bench: Bench, mode: ForwardMode) -> None:
    bench.dataplane.set_neighbour(REALS[0], way(None))
    bench.dataplane.apply(wanted(REALS[0], mode))
    assert Record(bench, REALS[0]).reachable


@pytest.mark.parametrize("real", REALS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("before", [ForwardMode.GUE, ForwardMode.L2])
def test_a_restart_keeps_it_until_the_way_is_known(
    bench: Bench, real: IPAddress, before: ForwardMode
) -> None:
    """Also for a real that gets tunnels from now on; the first address ends in zeros."""
    source = SOURCES[real.version][0]
    bench.dataplane.set_neighbour(real, way(source))
    bench.dataplane.apply(wanted(real, before))
    bench.restart()
    bench.dataplane.apply(wanted(real, ForwardMode.GUE))
    record = Record(bench, real)
    assert (record.reachable, record.source) == (True, source.packed)


def test_an_earlier_run_without_an_address_left_none(bench: Bench) -> None:
    bench.dataplane.set_neighbour(REALS[0], way(None))
    bench.dataplane.apply(wanted(REALS[0], ForwardMode.L2))
    bench.restart()
    bench.dataplane.apply(wanted(REALS[0], ForwardMode.GUE))
    assert not Record(bench, REALS[0]).reachable
