"""VLANs that nobody has configured: found out from the machine's VLAN devices, where a route leads to one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.unit.test_netlink import info, received
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Netlink
from vc5py.dataplane.rtnetlink import Route
from vc5py.model import IPAddress, Vlan

ETH0, ETH1, ON_ETH0, ON_ETH1, BRIDGE, OUTER = 2, 3, 6, 7, 8, 9
REALS: tuple[IPAddress, ...] = (ip_address("10.1.10.5"), ip_address("fd00:10::5"))
GATEWAY = ip_address("10.1.10.1")


def device(index: int, name: str, below: int, vlan: int, protocol: int = 0x8100) -> Any:
    data = {"attrs": [["IFLA_VLAN_ID", vlan], ["IFLA_VLAN_PROTOCOL", protocol]]}
    return received(index, name, ("IFLA_LINK", below), info(kind="vlan", data=data))


LINKS = {
    ETH0: received(ETH0, "eth0"),
    ETH1: received(ETH1, "eth1"),
    ON_ETH0: device(ON_ETH0, "eth0.10", ETH0, 10),
    ON_ETH1: device(ON_ETH1, "eth1.20", ETH1, 20),
    OUTER: device(OUTER, "eth0.30", ETH0, 30, 0x88A8),
    BRIDGE: received(BRIDGE, "br0", info(kind="bridge")),
}


class Routes:
    """The kernel's answers about links."""

    async def link(self, command: str, *, index: int) -> list[Any]:
        assert command == "get"
        return [LINKS[index]]


@pytest.mark.parametrize(
    ("index", "found"),
    [(ON_ETH0, (ETH0, 10)), (ON_ETH1, (ETH1, 20)), (ETH0, None), (BRIDGE, None), (OUTER, None)],
    ids=["a VLAN", "another", "an interface", "a bridge", "802.1ad"],
)
def test_vlan_of_a_device(index: int, found: tuple[int, int] | None) -> None:
    assert asyncio.run(Netlink(Routes()).vlan_below(index)) == found


def way(
    real: IPAddress,
    route: Route,
    *,
    far: bool = False,
    ours: Sequence[int] = (ETH0,),
    vlans: Sequence[Vlan] = (),
) -> tuple[IPAddress, int, int, int | None] | None:
    """By whom, asked where, out of which interface, and with which tag."""
    watch = NeighbourWatch(Netlink(Routes()), ours, lambda address, neighbour: None, vlans)
    watch.want(frozenset(REALS), frozenset(REALS if far else ()))
    found = asyncio.run(watch._way_to(real, route, {}))
    return None if found is None else (found.hop, found.resolve_on, found.ifindex, found.vlan)


@pytest.mark.parametrize("real", REALS, ids=["IPv4", "IPv6"])
def test_frames_get_the_tag_of_the_device_that_the_route_leads_to(real: IPAddress) -> None:
    assert way(real, Route(ON_ETH0, None)) == (real, ON_ETH0, ETH0, 10)


def test_frames_to_a_gateway_get_its_tag() -> None:
    assert way(REALS[0], Route(ON_ETH0, GATEWAY), far=True) == (GATEWAY, ON_ETH0, ETH0, 10)


def test_frames_to_an_interface_itself_keep_their_tags() -> None:
    assert way(REALS[0], Route(ETH0, None)) == (REALS[0], ETH0, ETH0, None)


BOTH = (ETH0, ETH1)
HERE, ELSEWHERE = Vlan(77, ip_network("10.1.10.0/24")), Vlan(78, ip_network("10.9.0.0/16"))


@pytest.mark.parametrize(
    ("index", "vlans", "out", "tag"),
    [
        (ETH0, (), ETH0, None),
        (ETH1, (), ETH1, None),
        (ON_ETH0, (), ETH0, 10),
        (ON_ETH1, (), ETH1, 20),
        (ETH0, (HERE,), ETH0, 77),
        (ETH1, (HERE,), ETH1, 77),
        (ON_ETH0, (HERE,), ETH0, 77),
        (ON_ETH1, (HERE,), ETH1, 77),
        (BRIDGE, (HERE,), ETH0, 77),  # the route doesn't say: the first
        (ETH0, (ELSEWHERE,), ETH0, 0),
        (ETH1, (ELSEWHERE,), ETH1, 0),
        (ON_ETH0, (ELSEWHERE,), ETH0, 10),
        (ON_ETH1, (ELSEWHERE,), ETH1, 20),
    ],
)
def test_of_two_interfaces_frames_leave_by_the_one_that_the_route_leads_to(
    index: int, vlans: Sequence[Vlan], out: int, tag: int | None
) -> None:
    """Configured tags stand over that of the device; what is behind no configured VLAN gets the device's."""
    real = REALS[0]
    assert way(real, Route(index, None), ours=BOTH, vlans=vlans) == (real, index, out, tag)
    by_gateway = way(real, Route(index, GATEWAY), far=True, ours=BOTH, vlans=vlans)
    assert by_gateway == (GATEWAY, index, out, tag)


@pytest.mark.parametrize("index", [ON_ETH1, BRIDGE, ETH1], ids=["not ours", "a bridge", "another interface"])
def test_where_the_way_out_is_not_ours_nothing_is_guessed(index: int) -> None:
    assert way(REALS[0], Route(index, None)) is None
