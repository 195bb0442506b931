"""Every way to a real by tags and sides, and the border of every tunnel: all of it, against the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

import pytest

from tests.packets.cases_flow import pieces4, pieces6
from tests.packets.cases_icmp import KINDS4, KINDS6, error, quote
from tests.packets.frames import IP_AT, padded, patched, tcp, udp
from tests.packets.harness import ACTIONS, Kernel
from tests.packets.oracle import Flows, Oracle
from tests.packets.oracle_send import tunnel_bytes
from tests.packets.test_frames import explain
from tests.packets.world import BOTH_PORTS, DSCP, L2, TAGS, WAYS, WORLD, RealSpec, ServiceSpec, Side, World
from vc5py.dataplane.abi import Action
from vc5py.model import Forwarding, ForwardMode, IPAddress

ALL_WAYS = {**WAYS, "l2": (L2, 0), "dscp": (Forwarding(ForwardMode.DSCP, 0, DSCP), 0)}
FAMILIES = (4, 6)
FORWARDED = {"forwarded_stable", "forwarded_new", "forwarded_ending", "forwarded_fragment", "forwarded_icmp"}
TRUNK = b"\x81\x00\x60\x09"  # priority 3
OUTER_TRUNK = b"\x88\xa8\xa0\x07"  # priority 5


def _service(n: int, way: str, tags: str, side: Side, family: int) -> ServiceSpec:
    """With one real, which is beside us if it has to be."""
    forwarding, outer = ALL_WAYS[way]
    vlan, svlan = TAGS[tags]
    address = ip_address(f"10.0.0.{n}" if (outer or family) == 4 else f"fd00::{n:x}")
    mac = f"02:00:00:00:77:{n:02x}"
    real = RealSpec(address, mac, side, forwarding=forwarding, on_link=way == "l2", vlan=vlan, svlan=svlan)
    vip = ip_address(f"192.0.2.{n}" if family == 4 else f"2001:db8::{n:x}")
    return ServiceSpec(f"{way}-{tags}", vip, BOTH_PORTS, (real,))


def world_of(side: Side, family: int) -> World:
    """With all ways and all tags."""
    rows = enumerate(product(ALL_WAYS, TAGS), start=10)
    return World(tuple(_service(n, way, tags, side, family) for n, (way, tags) in rows))


def with_tags(frame: bytes, count: int) -> bytes:
    """As it comes in: untagged, 802.1Q, or 802.1ad around that."""
    return frame[:12] + (b"", TRUNK, OUTER_TRUNK + TRUNK)[count] + frame[12:]


def sequences(vip: IPAddress) -> Iterator[tuple[bytes, ...]]:
    """What outer headers and checksums depend on."""
    l4 = IP_AT + (20 if vip.version == 4 else 40)
    pieces = pieces4(vip) if vip.version == 4 else pieces6(vip)
    yield (tcp(vip, flags="A", payload=b"abcdefghijklm", tos=0x17),)
    yield (tcp(vip, flags="FA"),)
    yield (padded(udp(vip, 53, payload=b"abcd", ttl=2), 90, b"\xaa"),)
    yield (patched(udp(vip, 53), l4 + 6, b"\0\0"),)
    yield pieces[0], pieces[-1]
    yield (error(KINDS4["unreachable"] if vip.version == 4 else KINDS6["too_big"], vip, quote(vip)),)


def compare(kernel: Kernel, world: World, all_frames: Iterable[Sequence[bytes]]) -> list[str]:
    """Frames that belong together one after another, each lot by itself; returns the verdicts."""
    oracle, seen = Oracle(world), list[str]()
    for frames in all_frames:
        kernel.clear_flows()
        flows: Flows = {}
        for frame, got in zip(frames, kernel.run_many(list(frames)), strict=True):
            assert got.verdict is not None
            seen.append(got.verdict)
            if ACTIONS[got.verdict] is Action.DROP:
                got = replace(got, frame=b"")
            expected = oracle.predict(frame, flows)
            assert got == expected, explain(expected, got)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", Side)
def test_every_way_with_all_tags(frozen_kernel: Kernel, side: Side, family: int) -> None:
    """Frames with none, one and two tags, to reals that want them kept, taken off, or others; to a real on
    the other side also where both are members of one bond.
    """
    world = world_of(side, family)
    lots = [lot for service in world.services for lot in sequences(service.vip)]
    tagged = [tuple(with_tags(frame, count) for frame in lot) for count in range(3) for lot in lots]
    worlds = [world] if side is Side.NEAR else [world, replace(world, bond=frozenset(Side))]
    for each in worlds:
        frozen_kernel.install(each)
        assert set(compare(frozen_kernel, each, tagged)) <= FORWARDED


TUNNELS = [service for service in WORLD.services if service.reals[0].forwarding.mode.is_tunnel]


def _at_border(service: ServiceSpec, protocol: str, more: int, tags: int) -> bytes:
    """A packet that just fits the tunnel, or is larger by `more`."""
    vip, real = service.vip, service.reals[0]
    make, header = (tcp, 20) if protocol == "tcp" else (udp, 8)
    ip_header = 20 if vip.version == 4 else 40
    size = real.forwarding.mtu - tunnel_bytes(real) - ip_header - header + more
    frame = make(vip, 80 if protocol == "tcp" else 53, payload=bytes(size))
    return with_tags(frame, tags)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("tags", range(3))
def test_the_border_of_every_tunnel(frozen_kernel: Kernel, protocol: str, tags: int) -> None:
    frozen_kernel.install(WORLD)
    fits = [(_at_border(service, protocol, 0, tags),) for service in TUNNELS]
    assert set(compare(frozen_kernel, WORLD, fits)) <= FORWARDED
    over = [(_at_border(service, protocol, 1, tags),) for service in TUNNELS]
    assert set(compare(frozen_kernel, WORLD, over)) == {"too_big_answered"}
    assert len(TUNNELS) == 24


@pytest.mark.parametrize("family", FAMILIES)
def test_the_border_of_another_link(frozen_kernel: Kernel, family: int) -> None:
    """Smaller than the one that frames come in by, and than the tunnels: the answer says what would fit."""
    world = replace(world_of(Side.FAR, family), near_mtu=9000, far_mtu=1400)
    frozen_kernel.install(world)
    header = 40 if family == 4 else 60
    rooms, fits, over = [], [], []
    for service in world.services:
        real = service.reals[0]
        around = tunnel_bytes(real) if real.forwarding.mode.is_tunnel else 0
        room = 1400 - around - (4 if real.svlan else 0)
        rooms.append(room)
        fits.append((tcp(service.vip, flags="A", payload=bytes(room - header)),))
        over.append((tcp(service.vip, flags="A", payload=bytes(room - header + 1)),))
    assert set(compare(frozen_kernel, world, fits)) <= FORWARDED
    assert set(compare(frozen_kernel, world, over)) == {"too_big_answered"}
    at = IP_AT + (26 if family == 4 else 46)  # the MTU in the answer
    answers = [frozen_kernel.run_raw(frame) for (frame,) in over]
    assert [int.from_bytes(answer[at : at + 2], "big") for answer in answers] == rooms
