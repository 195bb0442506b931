"""What link messages say, from the wire through pyroute2's decoder, and what follows for the programs."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vc5py.dataplane.links import Link, Port, Record, ports_of, records_of
from vc5py.dataplane.netlink import to_link
from vc5py.errors import DataplaneError

UP, RUNNING = 0x1003, 0x11043  # flags as `ip link` has them: without and with LOWER_UP


def mac(n: int) -> str:
    return f"02:00:00:00:00:{n:02x}"


def received(index: int, name: str, *attrs: tuple[str, object], flags: int = RUNNING) -> Any:
    """RTM_NEWLINK as the kernel writes it, decoded."""
    message = ifinfmsg()
    message["index"], message["flags"] = index, flags
    message["header"]["type"] = 16
    message["attrs"] = [["IFLA_IFNAME", name], ["IFLA_ADDRESS", mac(index)], *map(list, attrs)]
    message.encode()
    decoded = ifinfmsg(bytes(message.data))
    decoded.decode()
    return decoded


def info(**attrs: object) -> tuple[str, object]:
    """IFLA_LINKINFO; keys in lower case, without IFLA_INFO_."""
    return "IFLA_LINKINFO", {"attrs": [[f"IFLA_INFO_{name.upper()}", value] for name, value in attrs.items()]}


def of_bond(state: int) -> tuple[str, object]:
    """What a member of a bond says of itself; `state` 0: active, 1: backup."""
    data = {"attrs": [["IFLA_BOND_SLAVE_STATE", state], ["IFLA_BOND_SLAVE_MII_STATUS", 0]]}
    return info(slave_kind="bond", slave_data=data)


BOND = info(kind="bond", data={"attrs": [["IFLA_BOND_MODE", 1], ["IFLA_BOND_ACTIVE_SLAVE", 3]]})
MASTER = ("IFLA_MASTER", 5)


def test_plain_link() -> None:
    link = to_link(received(2, "eth0", ("IFLA_MTU", 9000)))
    assert link == Link(2, "eth0", mac(2), 9000, None, 0, running=True, backup=False)


@pytest.mark.parametrize(
    ("flags", "running"), [(RUNNING, True), (UP, False), (RUNNING & ~1, False), (0, False)]
)
def test_running_is_up_with_a_carrier(flags: int, running: bool) -> None:
    assert to_link(received(2, "eth0", flags=flags)).running is running


def test_bond() -> None:
    link = to_link(received(5, "bond0", BOND))
    assert (link.kind, link.master, link.is_bond, link.backup) == ("bond", 0, True, False)


@pytest.mark.parametrize("state", [0, 1])
def test_member(state: int) -> None:
    link = to_link(received(3, "eth1", MASTER, of_bond(state)))
    assert (link.master, link.backup, link.is_bond, link.kind) == (5, state == 1, False, None)


def test_member_that_is_a_device_of_some_kind() -> None:
    data = {"attrs": [["IFLA_BOND_SLAVE_STATE", 1]]}
    both = info(kind="veth", slave_kind="bond", slave_data=data)
    link = to_link(received(3, "eth1", MASTER, both))
    assert (link.kind, link.backup) == ("veth", True)


def test_state_of_a_bridge_port_is_not_a_bonds() -> None:
    data = {"attrs": [["IFLA_BRPORT_STATE", 1]]}
    link = to_link(received(3, "eth1", MASTER, info(slave_kind="bridge", slave_data=data)))
    assert (link.master, link.backup) == (5, False)


def links(*messages: Any) -> list[Link]:
    return [to_link(message) for message in messages]


TWO = links(
    received(1, "lo"),
    received(2, "eth0"),
    received(4, "eth2", MASTER, of_bond(1)),
    received(3, "eth1", MASTER, of_bond(0)),
    received(5, "bond0", BOND),
    received(6, "bond0.7", ("IFLA_LINK", 5), info(kind="vlan")),
    received(7, "br0", info(kind="bridge")),
    received(8, "eth3", ("IFLA_MASTER", 7)),
)


def names(port: Port) -> list[str]:
    return [member.name for member in port.members]


def test_programs_go_on_a_bonds_members_and_on_other_interfaces_themselves() -> None:
    bond, plain, port, bridge = ports_of([5, 2, 8, 7], TWO)
    assert (bond.link.name, names(bond)) == ("bond0", ["eth1", "eth2"])
    assert (plain.link.name, names(plain)) == ("eth0", ["eth0"])
    assert (port.link.name, names(port)) == ("eth3", ["eth3"])
    assert (bridge.link.name, names(bridge)) == ("br0", ["br0"]), "a bridge is no bond"


def test_records() -> None:
    assert records_of(ports_of([5, 2], TWO)) == {
        3: Record(mac(3), bond=5, exit=None),
        4: Record(mac(4), bond=5, exit=None),
        5: Record(mac(5), bond=0, exit=3),
        2: Record(mac(2), bond=0, exit=2),
    }


def test_a_bond_without_members_waits_for_them() -> None:
    (port,) = ports_of([5], TWO[-4:])
    assert (port.members, port.exit) == ((), None)
    assert records_of([port]) == {5: Record(mac(5))}


def test_a_member_by_itself_is_refused() -> None:
    with pytest.raises(DataplaneError, match="eth1 is a member of the bond bond0: name that one"):
        ports_of([2, 3], TWO)


def test_an_interface_that_is_gone() -> None:
    with pytest.raises(DataplaneError, match="number 9 is gone"):
        ports_of([9], TWO)


@pytest.mark.parametrize(
    ("members", "exit_by"),
    [
        ([(3, 0, RUNNING), (4, 0, RUNNING)], 3),
        ([(3, 1, RUNNING), (4, 0, RUNNING)], 4),
        ([(3, 0, UP), (4, 0, RUNNING)], 4),
        ([(3, 0, UP), (4, 1, RUNNING)], 4),  # about to become the active one
        ([(3, 0, UP), (4, 1, UP)], None),
    ],
)
def test_exit_is_the_first_member_that_can_send(
    members: list[tuple[int, int, int]], exit_by: int | None
) -> None:
    found = [received(n, f"eth{n}", MASTER, of_bond(state), flags=flags) for n, state, flags in members]
    (port,) = ports_of([5], links(received(5, "bond0", BOND), *found))
    assert port.exit == exit_by


def test_an_interface_without_a_carrier_still_leads_to_itself() -> None:
    (port,) = ports_of([2], links(received(2, "eth0", flags=UP)))
    assert port.exit == 2


def test_members_that_were_refused_are_none() -> None:
    (port,) = ports_of([5], TWO)
    assert names(port.without({3})) == ["eth2"]
