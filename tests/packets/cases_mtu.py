"""Cases of what is too large: for the link that a packet would leave by, or for a path, as a router tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6ExtHdrFragment
from scapy.packet import Raw

from tests.packets import frames
from tests.packets.cases_base import Case, entry, oracle_for
from tests.packets.cases_forward import BONDS, PORT, room
from tests.packets.cases_icmp import KINDS4, KINDS6, ROUTER, ROUTER6
from tests.packets.frames import ether, ip, patched, tags
from tests.packets.world import (
    FAR_VIP,
    FAR_VIP6,
    NO_VIP,
    NO_VIP6,
    OUR_MAC,
    SOURCES,
    WAYS,
    WEB_VIP,
    WEB_VIP6,
    WORLD,
    Side,
    World,
    mode_vip,
)
from vc5py.dataplane.abi import FlowState
from vc5py.model import IPAddress

STABLE, ANSWERED = "forwarded_stable", "too_big_answered"
tcp = partial(frames.tcp, flags="A", sport=PORT)
LINKS = {"untagged": (), "q": (100,), "adq": (300, 100)}
LARGE_IN = replace(WORLD, near_mtu=9000)
UNKNOWN = replace(WORLD, near_mtu=9000, far_mtu=0)
SMALL = replace(WORLD, near_mtu=1400, far_mtu=1400)
HEADERS = {4: 40, 6: 60}  # of IP and TCP


def with_tunnels_of(mtu: int, world: World = WORLD) -> World:
    """The same world, its tunnels larger."""
    services = tuple(
        replace(s, reals=tuple(replace(r, forwarding=replace(r.forwarding, mtu=mtu)) for r in s.reals))
        for s in world.services
    )
    return replace(world, services=services)


LARGE_TUNNELS = with_tunnels_of(9000)


def of_bytes(vip: IPAddress, total: int, ids: tuple[int, ...] = (), dport: int = 80) -> bytes:
    """A packet of so many bytes."""
    return tcp(vip, dport, payload=bytes(total - HEADERS[vip.version]), link=tags(*ids))


def _other_links() -> Iterator[Case]:
    """From a link of large frames to one of smaller ones."""
    for family, vip, dport in ((4, FAR_VIP, 53), (6, FAR_VIP6, 80)):
        make = partial(of_bytes, vip, dport=dport)
        for link, ids in LINKS.items():
            fits = 1496 if link == "adq" else 1500  # the kernel's bound counts Ethernet's header and one tag
            name = f"link_{link}_{family}"
            yield Case(f"{name}_fits", "just", make(fits, ids), STABLE, LARGE_IN)
            yield Case(f"{name}_over", "one byte more", make(fits + 1, ids), ANSWERED, LARGE_IN)
            yield Case(f"{name}_large", "much more", make(3000, ids), ANSWERED, LARGE_IN)
            yield Case(f"{name}_unknown", "nothing is known", make(3000, ids), STABLE, UNKNOWN)
        silent = replace(LARGE_IN, answers=False)
        yield Case(f"link_silent_{family}", "told too often", make(1501), "too_big", silent)
        bonded = replace(LARGE_IN, bond=BONDS["bond"], far_mtu=9000)
        yield Case(f"link_bond_{family}", "the other member is as good", make(3000), STABLE, bonded)
        behind = replace(LARGE_IN, bond=frozenset({Side.FAR}))
        yield Case(f"link_behind_bond_{family}", "the bond's", make(1501), ANSWERED, behind)
        cut = replace(LARGE_IN, cut=frozenset({Side.FAR}))
        yield Case(f"link_cut_{family}", "there is no link", make(3000), "no_exit", cut)
        group = "224.0.0.1" if family == 4 else "ff02::1"
        frame = tcp(vip, dport, payload=bytes(1500), src=ip_address(group))
        yield Case(f"link_bad_source_{family}", "nobody to tell", frame, "bad_source", LARGE_IN)


def _pieces() -> Iterator[Case]:
    known = {
        family: entry(WORLD.service(name).reals[0].address, FlowState.FRAGMENT, service=name)
        for family, name in ((4, "far"), (6, "far6"))
    }
    later = bytes(ether() / ip(FAR_VIP, frag=8, proto=17, id=77) / bytes(1481))
    yield Case("link_later_fragment_4", "never told", later, "too_big", LARGE_IN, entry=known[4])
    header = ip(FAR_VIP6) / IPv6ExtHdrFragment(id=77, nh=17, offset=8)
    later = bytes(ether() / header / bytes(1453))
    yield Case("link_later_fragment_6", "told", later, ANSWERED, LARGE_IN, entry=known[6])


def _same_link() -> Iterator[Case]:
    """What came by a link goes on by it, short of a tunnel."""
    for family, vip in ((4, WEB_VIP), (6, WEB_VIP6)):
        yield Case(f"same_link_{family}", "the driver took it", of_bytes(vip, 1501), STABLE)
        yield Case(f"same_link_q_{family}", "the same", of_bytes(vip, 1501, (100,)), STABLE)
        dscp = of_bytes(mode_vip("dscp", family), 1501)
        yield Case(f"same_link_dscp_{family}", "no larger than it was", dscp, STABLE)
        for way in WAYS:
            make = partial(of_bytes, mode_vip(way, family), ids=(300, 100))
            name, fits = f"{way}_{family}", room(way)
            yield Case(f"{name}_link_fits", "the tunnel has room", make(fits), STABLE, LARGE_TUNNELS)
            yield Case(f"{name}_link_over", "the link has not", make(fits + 1), ANSWERED, LARGE_TUNNELS)
    for family in (4, 6):
        for way in ("ipip4", "gue6"):
            make = partial(of_bytes, mode_vip(way, family))
            name, fits = f"{way}_{family}", room(way) - 100
            yield Case(f"{name}_small_fits", "by a smaller link", make(fits), STABLE, SMALL)
            yield Case(f"{name}_small_over", "the same", make(fits + 1), ANSWERED, SMALL)


# What routers tell of tunnels


def sent(way: str, family: int, *, payload: bytes = bytes(200)) -> bytes:
    """The packet, outer headers first, that goes to a real."""
    frame = tcp(mode_vip(way, family), payload=payload)
    return oracle_for(WORLD, None).predict(frame, {}).frame[14:]


def told(quoted: bytes, *, to: IPAddress | None = None, kind: object = None, link: object = None) -> bytes:
    """By a router, of a packet of ours."""
    family = quoted[0] >> 4
    kind = kind or (ICMP(type=3, code=4, nexthopmtu=1400) if family == 4 else ICMPv6PacketTooBig(mtu=1400))
    router = ip_address(ROUTER if family == 4 else ROUTER6)
    return bytes((link or ether()) / ip(to or SOURCES[family], router) / kind / Raw(quoted))


SMALL_PATH = "path_too_small"


def _paths() -> Iterator[Case]:
    for way in WAYS:
        header = 20 if way.endswith("4") else 40
        seen = SMALL_PATH if way[:4] in ("ipip", "gre4", "gre6") else "not_vip"
        for family in (4, 6):
            quoted, name = sent(way, family), f"path_{way}_for_{family}"
            yield Case(name, "a router's word", told(quoted), SMALL_PATH)
            for behind in (8, 32):
                cut = quoted[: header + behind]
                least = len(quoted) - len(sent_inside(quoted, family)) + (20 if family == 4 else 40) - header
                verdict = SMALL_PATH if behind >= least else seen
                yield Case(f"{name}_cut_{behind}", "little is quoted", told(cut), verdict)
            inside = sent_inside(quoted, family)
            other = patched(inside, 16 if family == 4 else 24, (NO_VIP if family == 4 else NO_VIP6).packed)
            frame = told(quoted[: len(quoted) - len(inside)] + other)
            yield Case(f"{name}_no_vip", "the host's own tunnel", frame, "not_vip")
            odd = patched(inside, 0, b"\x55")
            frame = told(quoted[: len(quoted) - len(inside)] + odd)
            yield Case(f"{name}_odd", "no IP inside", frame, "not_vip")


def sent_inside(outer: bytes, family: int) -> bytes:
    """The client's packet in it, which ends where the outer one does."""
    return outer[-(200 + HEADERS[family]) :]


def _other_words() -> Iterator[Case]:
    for family in (4, 6):
        quoted = sent(f"ipip{family}", family)
        for name, kind in (KINDS4 if family == 4 else KINDS6).items():
            verdict = SMALL_PATH if name in ("frag_needed", "too_big") else "not_vip"
            yield Case(f"path_kind_{name}_{family}", "of other kinds", told(quoted, kind=kind), verdict)
        elsewhere = ip_address("10.0.0.77" if family == 4 else "fd00::77")
        frame = told(quoted, to=elsewhere)
        yield Case(f"path_not_ours_{family}", "whoever sent it", frame, "not_vip")
        yield Case(f"path_q_{family}", "tagged", told(quoted, link=tags(100)), SMALL_PATH)
        frame = told(quoted, link=ether(dst=OUR_MAC[Side.FAR]))
        yield Case(f"path_mac_{family}", "for another host", frame, "not_vip")
        segment = bytes(ip(NO_VIP if family == 4 else NO_VIP6, SOURCES[family]) / TCP() / Raw(bytes(60)))
        yield Case(f"path_tcp_{family}", "the host's own", told(segment), "not_vip")
        segment = bytes(ip(NO_VIP if family == 4 else NO_VIP6, SOURCES[family]) / UDP() / Raw(bytes(60)))
        yield Case(f"path_udp_{family}", "the host's own", told(segment), "not_vip")
        version = patched(quoted, 0, b"\x46" if family == 4 else b"\x40")
        yield Case(f"path_version_{family}", "options, or no such IP", told_as(version, family), "not_vip")


def told_as(quoted: bytes, family: int) -> bytes:
    """Whatever version the quoted packet claims to have."""
    frame = told(patched(quoted, 0, b"\x45" if family == 4 else b"\x60"))
    return frame[: -len(quoted)] + quoted


MTU_CASES = [*_other_links(), *_pieces(), *_same_link(), *_paths(), *_other_words()]
