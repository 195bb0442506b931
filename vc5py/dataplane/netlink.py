"""Interfaces and program attachment by rtnetlink; the only module that knows pyroute2 (the lab, which builds
networks, aside). What is asked about every real is in `lookups`.

Must not know: maps, services. Every refusal by the kernel is a DataplaneError that names the interface.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vc5py.dataplane.links import LINEAR_MTU, Link
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress

# linux/if_link.h
_XDP_FLAGS_UPDATE_IF_NOEXIST = 1 << 0
_XDP_FLAGS_SKB_MODE = 1 << 1
_XDP_FLAGS_DRV_MODE = 1 << 2
_XDP_FLAGS_REPLACE = 1 << 4
# linux/if.h
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_BOND_STATE_BACKUP = 1  # linux/if_bonding.h
# Parent handle of a clsact qdisc's egress hook (linux/pkt_sched.h: TC_H_CLSACT, TC_H_MIN_EGRESS)
_CUSTOMER_TAG = 0x8100  # ETH_P_8021Q; an 802.1ad device has another
_CLSACT = 0xFFFF0000
_CLSACT_EGRESS = 0xFFFFFFF3
_FILTER_NAME = "vc5_egress"
_FILTER_PRIORITY = 50005


class XdpMode(StrEnum):
    """Where in the receive path the program runs: in the driver, or late and slowly in the stack."""

    NATIVE = "native"
    GENERIC = "generic"


_MODE_FLAGS = {XdpMode.NATIVE: _XDP_FLAGS_DRV_MODE, XdpMode.GENERIC: _XDP_FLAGS_SKB_MODE}


@dataclass(frozen=True, slots=True)
class Interface:
    """`addresses` are those of IPv4 first, in the kernel's order."""

    name: str
    index: int
    mac: str
    addresses: tuple[IPAddress, ...]


def to_link(message: Any) -> Link:
    """A link message as pyroute2 decodes it."""
    info: Any = message.get("linkinfo") or {}
    of_bond: Any = info.get("slave_data") if info.get("slave_kind") == "bond" else None
    up = _IFF_UP | _IFF_LOWER_UP
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        mac=message.get("address") or "",
        mtu=message.get("mtu") or 0,
        kind=info.get("kind"),
        master=message.get("master") or 0,
        running=message["flags"] & up == up,
        backup=of_bond is not None and of_bond.get_attr("IFLA_BOND_SLAVE_STATE") == _BOND_STATE_BACKUP,
    )


def _reason(error: NetlinkError) -> str:
    return os.strerror(error.code)


def _mtu_remedy(mode: XdpMode, link: Link) -> str:
    """What helps where the driver refuses because of its MTU; it has no error of its own for that."""
    if mode is XdpMode.GENERIC or link.mtu <= LINEAR_MTU:
        return ""
    return (
        f", perhaps because of its MTU of {link.mtu}: this driver may take no native XDP program above about"
        f" {LINEAR_MTU}; try: ip link set dev {link.name} mtu {LINEAR_MTU}"
    )


def _xdp_attributes(link: Any) -> dict[str, Any]:
    xdp = link.get("xdp")
    return dict(xdp["attrs"]) if xdp else {}


class Netlink:
    """One rtnetlink socket; made by `Netlink.open()`."""

    def __init__(self, route: Any) -> None:
        self._route = route

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Netlink]:
        async with AsyncIPRoute() as route:
            yield cls(route)

    async def interface(self, name: str) -> Interface:
        try:
            links = await self._route.link("get", ifname=name)
        except NetlinkError as error:
            raise DataplaneError(f"interface {name}: {_reason(error)}") from error
        link = links[0]
        mac = link.get("address")
        if mac is None or len(mac) != len("02:00:00:00:00:01"):
            raise DataplaneError(f"interface {name} has no Ethernet address")
        rows = [a async for a in await self._route.get_addr(index=link["index"])]
        rows.sort(key=lambda row: row["family"])
        addresses = tuple(ip_address(row.get("address")) for row in rows)
        return Interface(name, link["index"], mac, addresses)

    async def links(self) -> list[Link]:
        return list(await self.links_and_xdp())

    async def links_and_xdp(self) -> dict[Link, int | None]:
        """All links, as of one moment, each with the id of the XDP program that is on it."""
        rows = [(to_link(row), _xdp_attributes(row)) async for row in await self._route.get_links()]
        return {link: attributes.get("IFLA_XDP_PROG_ID") for link, attributes in rows}

    # Programs

    async def _xdp_state(self, interface: Link) -> dict[str, Any]:
        try:
            link = (await self._route.link("get", index=interface.index))[0]
        except NetlinkError as error:
            raise DataplaneError(f"interface {interface.name}: {_reason(error)}") from error
        return _xdp_attributes(link)

    async def attached_xdp(self, interface: Link) -> int | None:
        """The id of the XDP program that is on the interface."""
        return (await self._xdp_state(interface)).get("IFLA_XDP_PROG_ID")

    async def _set_xdp(self, interface: Link, fd: int, flags: int, expected_fd: int | None) -> None:
        attrs: list[tuple[str, int]] = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", flags)]
        if expected_fd is not None:
            attrs[1] = ("IFLA_XDP_FLAGS", flags | _XDP_FLAGS_REPLACE)
            attrs.append(("IFLA_XDP_EXPECTED_FD", expected_fd))
        await self._route.link("set", index=interface.index, xdp={"attrs": attrs})

    async def attach_xdp(
        self, interface: Link, fd: int, modes: tuple[XdpMode, ...], replaces: int | None
    ) -> tuple[XdpMode, str]:
        """Attaches in the first mode that the driver takes; returns it and why an earlier one was refused.

        `replaces` is the file descriptor of our own program that is on the interface now: it is exchanged
        in one step, in the mode it has. A program of somebody else's is left alone.
        """
        if replaces is not None:
            modes = (await self._current_mode(interface),)
        refusals: list[str] = []
        for mode in modes:
            flags = _MODE_FLAGS[mode] | (_XDP_FLAGS_UPDATE_IF_NOEXIST if replaces is None else 0)
            try:
                await self._set_xdp(interface, fd, flags, replaces)
            except NetlinkError as error:
                if error.code in (errno.EBUSY, errno.EEXIST):
                    raise DataplaneError(
                        f"interface {interface.name} has an XDP program of somebody else's: remove it first"
                    ) from error
                refusals.append(f"{mode}: {_reason(error)}{_mtu_remedy(mode, interface)}")
            else:
                return mode, "; ".join(refusals)
        raise DataplaneError(f"interface {interface.name} takes no XDP program ({'; '.join(refusals)})")

    async def _current_mode(self, interface: Link) -> XdpMode:
        attached = str((await self._xdp_state(interface)).get("IFLA_XDP_ATTACHED"))
        return XdpMode.GENERIC if attached in ("2", "xdpgeneric") else XdpMode.NATIVE

    async def interfaces_with_xdp(self) -> list[tuple[Link, int]]:
        """All links that have an XDP program, with its id."""
        found = await self.links_and_xdp()
        return [(link, program) for link, program in found.items() if program is not None]

    async def detach_xdp(self, interface: Link, fd: int) -> None:
        """Takes our program off, in the mode it was attached with: the other way nothing happens, without
        a word. DataplaneError, and nothing done, where another program is there by now.
        """
        if await self.attached_xdp(interface) is None:
            return
        try:
            await self._set_xdp(interface, -1, _MODE_FLAGS[await self._current_mode(interface)], fd)
        except NetlinkError as error:
            raise DataplaneError(
                f"the XDP program on {interface.name} isn't ours any more: {_reason(error)}"
            ) from error
        if await self.attached_xdp(interface) is not None:
            raise DataplaneError(f"the XDP program stays attached to {interface.name}")

    async def attach_egress(self, interface: Link, fd: int) -> None:
        """Puts the probe-steering program on the interface's TC egress hook, or replaces it there."""
        try:
            await self._route.tc("add", kind="clsact", index=interface.index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise DataplaneError(f"interface {interface.name} takes no clsact qdisc: {error}") from error
        try:
            await self._route.tc(
                "replace-filter",
                kind="bpf",
                index=interface.index,
                handle=1,
                fd=fd,
                name=_FILTER_NAME,
                parent=_CLSACT_EGRESS,
                classid=1,
                direct_action=True,
                prio=_FILTER_PRIORITY,
            )
        except NetlinkError as error:
            raise DataplaneError(f"interface {interface.name} takes no TC program: {error}") from error

    async def detach_egress(self, interface: Link) -> None:
        """Takes our filter away; the clsact qdisc may serve others and stays."""
        try:
            await self._route.tc(
                "del-filter",
                kind="bpf",
                index=interface.index,
                handle=1,
                parent=_CLSACT_EGRESS,
                prio=_FILTER_PRIORITY,
            )
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise DataplaneError(f"interface {interface.name}: {error}") from error

    # VLAN devices

    async def vlan_below(self, ifindex: int) -> tuple[int, int] | None:
        """The interface below an 802.1Q device and the VLAN's number; None for any other device."""
        try:
            link = (await self._route.link("get", index=ifindex))[0]
        except NetlinkError:
            return None
        info = link.get("linkinfo")
        data = info.get("data") if info and info.get("kind") == "vlan" else None
        if not data or data.get("vlan_protocol", _CUSTOMER_TAG) != _CUSTOMER_TAG:
            return None
        return int(link.get("link")), int(data.get("vlan_id"))
