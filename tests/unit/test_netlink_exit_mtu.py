"""From a link with large frames to one with smaller ones, on a real kernel: what fits arrives, and of what
doesn't the client is told, as the MTUs are at the moment. And filters of tags.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from tests.unit.test_netlink_bonds import (
    BOND,
    CLIENT,
    DESIRED,
    MACS,
    REAL_MAC,
    VIP,
    InNetwork,
    bpf_dir,
    in_network,
    link_of,
    root,
    running,
    tap,
    until,
)
from tests.unit.test_netlink_mtu import program, set_mtu
from vc5py.dataplane import offloads
from vc5py.dataplane.driver import Driver
from vc5py.dataplane.netlink import Netlink, XdpMode
from vc5py.model import Desired, Forwarding, ForwardMode, Vlan

__all__ = ["bpf_dir", "in_network", "root"]

LARGE, SMALL = 9000, 1500
HEADERS = 40  # of IP and TCP
ROUTER_MAC = "02:00:00:00:00:fe"


def frame(total: int, tags: Sequence[Packet] = ()) -> bytes:
    """From the client, by the far link; an IP packet of so many bytes."""
    head = Ether(dst=MACS["far"], src=ROUTER_MAC)
    for tag in tags:
        head = head / tag
    packet = IP(src=str(CLIENT), dst=str(VIP)) / TCP(sport=4001, dport=80, flags="S")
    return bytes(head / packet / bytes(total - HEADERS))


async def outcome(sent: bytes) -> tuple[str, int]:
    """`arrived` with the bytes of its IP packet, or `told` with the MTU that the client is told of."""
    loop = asyncio.get_running_loop()

    async def arrival(real: socket.socket) -> tuple[str, int]:
        while True:
            seen = Ether(await loop.sock_recv(real, 10000))
            if seen.dst == REAL_MAC and IP in seen:
                return "arrived", seen[IP].len

    async def answer(client: socket.socket) -> tuple[str, int]:
        while True:
            seen = Ether(await loop.sock_recv(client, 10000))
            if seen.dst == ROUTER_MAC and ICMP in seen:
                assert (seen[ICMP].type, seen[ICMP].code) == (3, 4)
                return "told", seen[ICMP].nexthopmtu

    with tap("far") as client, tap("m1") as real:
        client.send(sent)
        both = [asyncio.create_task(arrival(real)), asyncio.create_task(answer(client))]
        done, rest = await asyncio.wait(both, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        assert done, "the frame vanished"
        return done.pop().result()


def known_mtu(driver: Driver) -> int:
    return int(driver._maps.interfaces["mtu"][socket.if_nametoindex(BOND)])


@asynccontextmanager
async def peers_that_take_frames() -> AsyncIterator[None]:
    """In native mode what a veth sends ends at a program."""
    with program(frags=True) as fd:
        async with Netlink.open() as netlink:
            for name in ("peer-far", "peer-m1"):
                await netlink.attach_xdp(await link_of(netlink, name), fd, (XdpMode.NATIVE,), None)
        yield


def test_what_does_not_fit_the_other_link_is_answered(in_network: InNetwork, bpf_dir: Path) -> None:
    async def play() -> None:
        set_mtu(LARGE, "far", "peer-far")
        async with peers_that_take_frames(), running(bpf_dir, BOND, "far", mode=None) as driver:
            assert set(driver.modes.values()) == {XdpMode.NATIVE}
            assert known_mtu(driver) == SMALL
            assert await outcome(frame(SMALL)) == ("arrived", SMALL)
            assert await outcome(frame(SMALL + 1)) == ("told", SMALL)
            assert await outcome(frame(SMALL, [Dot1Q(vlan=7)])) == ("arrived", SMALL)
            assert await outcome(frame(SMALL + 1, [Dot1Q(vlan=7)])) == ("told", SMALL)
            two = [Dot1AD(vlan=8), Dot1Q(vlan=7)]
            assert await outcome(frame(SMALL - 4, two)) == ("arrived", SMALL - 4)
            assert await outcome(frame(SMALL - 3, two)) == ("told", SMALL - 4)
            set_mtu(LARGE, "m1", "peer-m1", "m2", "peer-m2")
            await until("the larger MTU is known", lambda: is_mtu(driver, LARGE))
            assert await outcome(frame(3000)) == ("arrived", 3000)
            set_mtu(SMALL, "m1")
            await until("the smaller MTU is known", lambda: is_mtu(driver, SMALL))
            assert await outcome(frame(3000)) == ("told", SMALL)
            await driver.detach()

    in_network(play)


async def is_mtu(driver: Driver, mtu: int) -> bool:
    return known_mtu(driver) == mtu


def by_tunnel(mtu: int) -> Desired:
    (service,) = DESIRED.services
    (backend,) = service.backends
    changed = replace(backend, forwarding=Forwarding(ForwardMode.IPIP, mtu=mtu))
    return Desired((replace(service, backends=(changed,)),))


async def no_warnings(driver: Driver) -> bool:
    return not driver.warnings


VLANS = (Vlan(10, ip_network("10.9.0.0/24")),)
FIXED = offloads.Outcome((), ("rx-vlan-filter",), "the driver has it fixed")


def test_links_that_are_too_small_or_drop_tags_are_told_of(
    in_network: InNetwork, bpf_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tunnel the link's MTU counts. No device of this kernel has a filter of tags: what a driver would
    say is played.
    """
    told = {"m1": FIXED, "m2": offloads.Outcome(("rx-vlan-filter",))}
    monkeypatch.setattr(offloads, "take_all_tags", lambda name: told.pop(name, offloads.Outcome()))

    async def tunnels(driver: Driver) -> None:
        await driver.resolve(by_tunnel(SMALL))
        assert not driver.warnings
        await driver.resolve(by_tunnel(LARGE))
        (warning,) = driver.warnings
        assert f"interface={BOND} mtu={SMALL} tunnels={LARGE}" in warning
        await driver.resolve(by_tunnel(LARGE))
        assert caplog.text.count(warning) == 1
        driver.dataplane.apply(by_tunnel(LARGE))
        assert await outcome(frame(SMALL)) == ("told", SMALL - 20)
        set_mtu(LARGE, "m1", "m2")
        await until("the link is large enough", lambda: no_warnings(driver))

    async def filters(driver: Driver) -> None:
        assert len(told) == 2, "only where VLANs are configured"
        driver.neighbours.set_vlans(VLANS)
        await driver.resolve(DESIRED)
        (warning,) = driver.warnings
        assert "may be dropped" in warning and "interface=m1 offload=rx-vlan-filter" in warning
        assert caplog.text.count(warning) == 1 and not told
        driver.neighbours.set_vlans(())
        await driver.resolve(DESIRED)
        assert not driver.warnings

    async def play() -> None:
        async with running(bpf_dir, BOND, "far") as driver:
            await tunnels(driver)
            await filters(driver)
            await driver.detach()

    caplog.set_level("INFO")
    in_network(play)
    assert "come in from now on interface=m2 turned_off=rx-vlan-filter" in caplog.text


def test_the_kernel_is_asked_about_filters(in_network: InNetwork) -> None:
    """A veth has none, so that there is nothing to be turned off."""

    async def play() -> None:
        assert offloads.take_all_tags("far") == offloads.Outcome()
        gone = offloads.take_all_tags("gone")
        assert gone == offloads.Outcome((), offloads.DROP_TAGS, "not known, No such device")

    in_network(play)
