"""The driver on a real kernel while the machine changes: MAC addresses and addresses of our own interfaces,
and what drivers do to frames with tags.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP

from tests.unit import test_netlink_bonds as bonds
from tests.unit.test_netlink_bonds import (
    BOND,
    MACS,
    REAL,
    REAL_MAC,
    VIP,
    InNetwork,
    bpf_dir,
    forwarded,
    in_network,
    ip,
    listening,
    root,
    running,
    until,
)
from vc5py.dataplane import abi, offloads
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.neighbours import NeighbourWatch
from vc5py.dataplane.netlink import Netlink
from vc5py.model import (
    BackendId,
    BackendState,
    Desired,
    Forwarding,
    ForwardMode,
    IPAddress,
    Protocol,
    ServiceState,
    VirtualServiceId,
)

__all__ = ["bpf_dir", "in_network", "root"]


REAL6 = IPv6Address("fd09::2")
OTHER_MAC = "02:00:00:00:00:77"


def known_mac(driver: Driver, name: str) -> str:
    return abi.word_to_mac(int(driver._maps.interfaces["link"][socket.if_nametoindex(name)]) & (1 << 48) - 1)


def test_a_changed_mac_of_a_plain_interface_is_followed(
    in_network: InNetwork, bpf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async def changed() -> bool:
            return known_mac(driver, "far") == OTHER_MAC

        ip(f"route add {REAL} dev far")
        ip(f"neigh add {REAL} lladdr {REAL_MAC} dev far nud permanent")
        async with running(bpf_dir, "far") as driver:
            assert (await forwarded("far", "far")).src == MACS["far"]
            ip(f"link set far address {OTHER_MAC}")
            await until("the new address counts", changed)
            monkeypatch.setitem(MACS, "far", OTHER_MAC)
            assert (await forwarded("far", "far")).src == OTHER_MAC
            await driver.detach()

    in_network(play)


TUNNELLED = BackendState(
    BackendId("web", VIP, REAL), up=True, weight=1, forwarding=Forwarding(ForwardMode.IPIP)
)
DESIRED = Desired((ServiceState(VirtualServiceId("web", VIP), ((80, Protocol.TCP),), (TUNNELLED,)),))


@asynccontextmanager
async def tunnelling(monkeypatch: pytest.MonkeyPatch, bpf_dir: Path) -> AsyncIterator[Driver]:
    """`far` is the first interface, the real is on the other one."""
    monkeypatch.setattr(bonds, "DESIRED", DESIRED)
    async with running(bpf_dir, "far", BOND) as driver:
        yield driver
        await driver.detach()


async def outer_source() -> str:
    return str((await forwarded("far", "m1"))[IP].src)


def test_tunnels_are_sent_from_the_address_that_the_route_says(
    in_network: InNetwork, bpf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from that of the first interface; and from another one as soon as the kernel would."""

    async def play() -> None:
        async def is_source(address: str) -> bool:
            record = driver._maps.backends[driver._maps.backends["identity"] != 0]
            return bytes(record["source"][0]) == ip_address(address).packed

        async with tunnelling(monkeypatch, bpf_dir) as driver:
            assert await outer_source() == "10.9.0.1"
            ip("addr add 10.9.0.3/24 dev bond")
            ip(f"route add {REAL} dev bond src 10.9.0.3")
            await until("the other one is used", lambda: is_source("10.9.0.3"))
            assert await outer_source() == "10.9.0.3"
            assert driver.warnings == ()

    in_network(play)


def test_an_address_that_comes_later_counts_at_once(
    in_network: InNetwork,
    bpf_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While there is none, the log and the status say so."""

    async def play() -> None:
        ip("addr del 10.9.0.1/24 dev bond")
        ip("addr del 10.8.0.1/24 dev far")
        ip(f"route add {REAL} dev bond")
        ip(f"neigh replace {REAL} lladdr {REAL_MAC} dev bond nud permanent")
        async with tunnelling(monkeypatch, bpf_dir) as driver:
            (warning,) = driver.warnings
            assert "no IPv4 address of ours to send tunnels from" in warning
            assert f"real={REAL} others=0" in warning and caplog.text.count(warning) == 1
            ip("addr add 10.9.0.1/32 dev bond")
            await until("no warning any more", lambda: are_warnings(driver))
            assert await outer_source() == "10.9.0.1"
        assert "all tunnels have an address of ours" in caplog.text

    caplog.set_level("INFO")
    in_network(play)


async def are_warnings(driver: Driver, *warnings: str) -> bool:
    return driver.warnings == warnings


@asynccontextmanager
async def watching(tunnelled: frozenset[IPAddress]) -> AsyncIterator[tuple[NeighbourWatch, Sources]]:
    """What is known of a real beyond an interface that has no address but a link-local one."""
    ip("addr add fe80::1/64 dev bond")
    ip(f"route add {REAL6} dev bond")
    ip(f"neigh replace {REAL6} lladdr {REAL_MAC} dev bond nud permanent")
    sources = Sources()
    async with Netlink.open() as netlink:
        watch = NeighbourWatch(netlink, [socket.if_nametoindex(BOND)], sources)
        watch.want(frozenset({REAL6}), frozenset({REAL6}), tunnelled)
        await watch.refresh()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch.run())
            await until("events are listened for", listening)
            yield watch, sources
            task.cancel()


class Sources:
    """The addresses that tunnels to the real are sent from; `until` waits for one."""

    def __init__(self) -> None:
        self.known: IPAddress | None = None

    def __call__(self, real: IPAddress, neighbour: Neighbour | None) -> None:
        assert neighbour is not None and neighbour.mac == REAL_MAC
        self.known = neighbour.source

    async def until(self, address: str) -> None:
        async def is_known() -> bool:
            return self.known == ip_address(address)

        await until(f"{address} is used", is_known)


def test_addresses_that_come_and_are_deprecated(in_network: InNetwork) -> None:
    """No route changes when an address has had its time: the kernel tells of the address alone."""

    async def play() -> None:
        async with watching(frozenset({REAL6})) as (watch, sources):
            assert sources.known is None and "no IPv6 address of ours" in watch.warnings[0]
            ip("addr add fd0a::1/128 dev bond noprefixroute")
            await sources.until("fd0a::1")
            assert watch.warnings == ()
            ip("addr add fd09::1/128 dev bond noprefixroute")
            await sources.until("fd09::1")
            ip("addr change fd09::1/128 dev bond valid_lft forever preferred_lft 1 noprefixroute")
            await sources.until("fd0a::1")

    in_network(play)


def test_without_a_tunnel_no_address_is_missed(in_network: InNetwork) -> None:
    async def play() -> None:
        async with watching(frozenset()) as (watch, sources):
            assert sources.known is None and watch.warnings == () and watch.complete

    in_network(play)


# Tags


def offloads_of(name: str) -> set[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        return set(offloads._Ethtool(opened, name).active())


class _Capabilities(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 6)]


def give_up_net_admin() -> None:
    """Of this thread, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = _Capabilities()
    assert libc.capget(header, ctypes.byref(data)) == 0
    data.words[0] &= ~(1 << 12)
    assert libc.capset(header, ctypes.byref(data)) == 0


def test_what_takes_tags_out_of_frames_is_turned_off(
    in_network: InNetwork, bpf_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of members that join later; it stays off, also after the end. Where it can't be, the log and the
    status say so, until the link is none of ours any more. (No device of this kernel has it fixed.)
    """
    really = offloads.keep_tags_in_frames
    fixed = offloads.Outcome((), ("rx-vlan-hw-parse",), "the driver has it fixed")
    monkeypatch.setattr(offloads, "keep_tags_in_frames", lambda name: fixed if name == "m1" else really(name))

    async def play() -> None:
        both = set(offloads.TAKE_TAGS_OUT)
        assert offloads_of("far") == offloads_of("m2") == offloads_of("m3") == both
        async with running(bpf_dir, "far", BOND) as driver:
            assert offloads_of("far") == offloads_of("m2") == set()
            assert offloads_of("m3") == both
            (warning,) = driver.warnings
            assert "interface=m1 offload=rx-vlan-hw-parse not turned off: the driver has it fixed" in warning
            assert caplog.text.count(warning) == 1
            ip("link set m3 master bond")
            await until("the tags of m3 are seen", lambda: keeps_tags("m3"))
            ip("link set m1 nomaster")
            await until("m1 has left", lambda: are_warnings(driver))
            await driver.detach()
        assert offloads_of("far") == set()

    caplog.set_level("INFO")
    in_network(play)
    for name in ("far", "m2", "m3"):
        assert f"interface={name} turned_off=rx-vlan-hw-parse,rx-vlan-stag-hw-parse" in caplog.text


async def keeps_tags(name: str) -> bool:
    return not offloads_of(name)


def test_what_can_not_be_turned_off_is_told(in_network: InNetwork) -> None:
    """A device may have it fixed; here it is the kernel that refuses."""

    async def play() -> None:
        give_up_net_admin()
        outcome = offloads.keep_tags_in_frames("far")
        assert outcome == offloads.Outcome((), offloads.TAKE_TAGS_OUT, "Operation not permitted")

    in_network(play)


def test_of_an_interface_that_is_gone_nothing_is_known(in_network: InNetwork) -> None:
    async def play() -> None:
        outcome = offloads.keep_tags_in_frames("gone")
        assert outcome == offloads.Outcome((), offloads.TAKE_TAGS_OUT, "not known, No such device")

    in_network(play)
