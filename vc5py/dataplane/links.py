"""Which links an interface consists of: itself, or a bond's members. What the maps hold of each follows.

Pure; knows nothing of netlink messages, maps or programs.

A bond is one interface for addresses, routes and neighbours, and backends name it; but frames come in by its
members, so the XDP program is on these, and frames leave by the member they came in by. A frame that came in
by another interface leaves by one member that can send (`Port.exit`). All members take frames for VIPs, also
those the bond keeps in reserve: a fail-over needs no word from us. Each member has a MAC address of its own
in some modes of bonding, and the bond's in the others: it is the one that frames for it have.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vc5py.errors import DataplaneError
from vc5py.model import IPAddress

# The largest MTU whose frames fit one buffer of common drivers (3,072 bytes, two tags and Ethernet's header
# taken off), so that a program which reads one buffer will do.
LINEAR_MTU = 3050
BOND_KINDS = frozenset({"bond"})


@dataclass(frozen=True, slots=True)
class Link:
    """A network device as the kernel reports it. `master`: the ifindex of the device that it is a part of, 0
    for none. `running`: up, with a carrier. `backup`: a member that its bond sends nothing by at present.
    """

    index: int
    name: str
    mac: str
    mtu: int = 1500
    kind: str | None = None
    master: int = 0
    running: bool = True
    backup: bool = False

    @property
    def is_bond(self) -> bool:
        return self.kind in BOND_KINDS

    @property
    def takes_frames(self) -> bool:
        """Whether frames for VIPs may come in by it now. (A switch sends none to a member in reserve.)"""
        return self.running and not self.backup

    @property
    def is_veth(self) -> bool:
        """Whether frames that XDP sends end at a peer, which takes them only with GRO or a program."""
        return self.kind == "veth"


@dataclass(frozen=True, slots=True)
class Port:
    """An interface named on the command line. `members`: the links that get the XDP program, by ifindex."""

    link: Link
    members: tuple[Link, ...]

    @property
    def exit(self) -> int | None:
        """The link by which frames leave that came in by another port: one whose bond sends by it, if any."""
        running = [member for member in self.members if member.running]
        if not self.link.is_bond:
            return self.link.index
        return min(running, key=lambda m: (m.backup, m.index)).index if running else None

    @property
    def mtu(self) -> int:
        """Of the link by which frames leave; of a bond that has none, its own."""
        return next((member.mtu for member in self.members if member.index == self.exit), self.link.mtu)

    def without(self, indexes: Container[int]) -> Port:
        return replace(self, members=tuple(m for m in self.members if m.index not in indexes))


@dataclass(frozen=True, slots=True)
class Record:
    """What the maps hold of one link: struct interface, and where the devmap leads (None: nowhere). `mtu`: of
    the link that frames leave by, 0 where that is not known.
    """

    mac: str
    bond: int = 0
    exit: int | None = None
    mtu: int = 0


def ports_of(named: Iterable[int], links: Sequence[Link]) -> tuple[Port, ...]:
    """The interfaces of these indices, in their order. DataplaneError where one can't be used by itself."""
    by_index = {link.index: link for link in links}
    return tuple(_port(index, by_index) for index in named)


def _port(index: int, links: Mapping[int, Link]) -> Port:
    if index not in links:
        raise DataplaneError(f"interface number {index} is gone")
    link = links[index]
    master = links.get(link.master)
    if master is not None and master.is_bond:
        raise DataplaneError(f"interface {link.name} is a member of the bond {master.name}: name that one")
    if not link.is_bond:
        return Port(link, (link,))
    members = (other for other in links.values() if other.master == index)
    return Port(link, tuple(sorted(members, key=lambda member: member.index)))


def records_of(ports: Iterable[Port]) -> dict[int, Record]:
    """By ifindex."""
    records: dict[int, Record] = {}
    for port in ports:
        if port.link.is_bond:
            for member in port.members:
                records[member.index] = Record(member.mac, port.link.index, mtu=member.mtu)
        records[port.link.index] = Record(port.link.mac, exit=port.exit, mtu=port.mtu)
    return records


def small_links(
    tunnels: Mapping[IPAddress, int], exit_to: Callable[[IPAddress], int | None], ports: Iterable[Port]
) -> tuple[str, ...]:
    """Where tunnels may be larger than their link, in words. `tunnels`: MTUs by real."""
    by_index, largest = {port.link.index: port for port in ports}, dict[int, int]()
    for real, mtu in tunnels.items():
        index = exit_to(real)
        if index is not None:
            largest[index] = max(mtu, largest.get(index, 0))
    return tuple(
        f"mtu of tunnels is larger than that of their link, which counts:"
        f" interface={port.link.name} mtu={port.mtu} tunnels={largest[index]}"
        for index, port in by_index.items()
        if 0 < port.mtu < largest.get(index, 0)
    )
