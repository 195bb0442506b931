"""Cases of changing tables, schedulings, policies and fragments: what a packet's past makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.packet import Raw

from tests.packets import frames
from tests.packets.cases_base import REAL_11, REAL_12, REAL_13, WEB_11_DOWN, WEB_11_DRAINING, Case, entry
from tests.packets.cases_icmp import KINDS4, error, quote
from tests.packets.frames import IP_AT, ether, from_client, ip, lying, tcp, udp
from tests.packets.harness import Entry
from tests.packets.oracle import FRAGMENT_TICKS, maglev_choice, read_tuple
from tests.packets.world import (
    LEAST_VIP,
    PASS_VIP,
    STICKY_VIP,
    STICKY_VIP6,
    WAYS,
    WEB_VIP,
    WEB_VIP6,
    WORLD,
    mode_vip,
    tags_vip,
)
from vc5py.dataplane.abi import FlowState
from vc5py.model import IPAddress

PORT = 40002  # of flows that are not sampled
DROPPING = replace(WORLD, drop_fragments=True)
WEB, WEB6 = WORLD.service("web"), WORLD.service("web6")
LOADED = WORLD
for _address, _load in ((REAL_11, 30), (REAL_12, 10), (REAL_13, 20)):
    LOADED = LOADED.with_real("least", _address, up=True, weight=1, load=_load)


def port_of(address: IPAddress, *, sampled: bool = False) -> int:
    """A source port with which the usual client's connection to web falls to this real."""
    for port in range(42000, 44000):
        flow = read_tuple(tcp(sport=port))
        if maglev_choice(WEB, flow.hash).address == address and flow.sampled == sampled:
            return port
    raise AssertionError("no such port")


def _unstable() -> Iterator[Case]:
    """A real is drained or goes down: packets of its slots, and of others."""
    moved, kept = port_of(REAL_11), port_of(REAL_12)
    start, data, end = (tcp(flags=flags, sport=moved) for flags in ("S", "A", "FA"))
    changes = {"draining": WEB_11_DRAINING, "down": WEB_11_DOWN}
    for name, world in changes.items():
        case = partial(Case, description="after a change", world=world, before=WORLD)
        down = name == "down"
        old = "forwarded_new" if down else "forwarded_previous"
        yield case(id=f"{name}_syn", frame=start, verdict="forwarded_new")
        yield case(id=f"{name}_data", frame=data, verdict=old)
        yield case(id=f"{name}_fin", frame=end, verdict="forwarded_ending")
        for address in (REAL_11, REAL_12):
            known, number = entry(address), address.packed[3]
            gone = down and address == REAL_11
            verdict = "forwarded_rehashed" if gone else "forwarded_flow"
            yield case(id=f"{name}_known_{number}", frame=data, verdict=verdict, entry=known)
            yield case(id=f"{name}_syn_known_{number}", frame=start, verdict=verdict, entry=known)
            ends = "forwarded_ending" if gone else "forwarded_flow"
            yield case(id=f"{name}_fin_known_{number}", frame=end, verdict=ends, entry=known)
        yield case(id=f"{name}_crowded", frame=data, verdict="forwarded_unrecorded", crowded=True)
        yield case(id=f"{name}_crowded_syn", frame=start, verdict="forwarded_unrecorded", crowded=True)
        kept_data = tcp(flags="A", sport=kept)
        yield case(id=f"{name}_kept_syn", frame=tcp(sport=kept), verdict="forwarded_stable")
        yield case(id=f"{name}_kept_data", frame=kept_data, verdict="forwarded_stable")
        yield case(id=f"{name}_again", frame=data, verdict="forwarded_flow", first=(data,))
        yield case(id=f"{name}_after_syn", frame=data, verdict="forwarded_flow", first=(start,))
        about = error(KINDS4["frag_needed"], WEB_VIP, quote(WEB_VIP, cport=moved))
        yield case(id=f"{name}_error", frame=about, verdict="forwarded_icmp")
    both = WEB_11_DRAINING.with_real("web", REAL_12, up=False, weight=0)
    lost = Case(
        id="rehashed_past_previous",
        description="not to the draining real that the slot named before: it was never this flow's",
        frame=data,
        verdict="forwarded_rehashed",
        world=both,
        before=WORLD,
        entry=entry(REAL_12),
    )
    yield lost
    yield Case("comes_back", "a real comes back", data, "forwarded_previous", before=WEB_11_DOWN)
    yield Case("comes_back_syn", "a real comes back", start, "forwarded_new", before=WEB_11_DOWN)
    other = tcp(flags="A", sport=kept)
    yield Case("comes_back_kept", "of another slot", other, "forwarded_stable", before=WEB_11_DOWN)


def _schedulings() -> Iterator[Case]:
    for family, vip in ((4, STICKY_VIP), (6, STICKY_VIP6)):
        for port in (1, 2, 3):
            frame = tcp(vip, sport=port)
            yield Case(f"sticky_{family}_{port}", "by the address alone", frame, "forwarded_new")
        for flags, verdict in (("A", "forwarded_new"), ("FA", "forwarded_ending")):
            yield Case(f"sticky_{family}_{flags}", "never by the slot", tcp(vip, flags=flags), verdict)
        yield Case(f"sticky_{family}_udp", "likewise", udp(vip, 53), "forwarded_new")
    known = entry(REAL_13, service="sticky")
    yield Case(
        "sticky_known", "the table comes first", tcp(STICKY_VIP, flags="A"), "forwarded_flow", entry=known
    )
    for n in range(8):
        client = from_client(tcp(STICKY_VIP), IPv4Address(f"198.51.100.{n}"), 5000)
        yield Case(f"sticky_client_{n}", "clients spread", client, "forwarded_new")
        about = quote(STICKY_VIP, client=IPv4Address(f"198.51.100.{n}"))
        frame = error(KINDS4["unreachable"], STICKY_VIP, about)
        drained = WORLD.with_real("sticky", REAL_11, up=True, weight=0)
        yield Case(f"sticky_error_{n}", "after a change", frame, "forwarded_icmp", drained, before=WORLD)
        frame = tcp(LEAST_VIP, sport=4000 + n)
        yield Case(f"least_{n}", "equal loads", frame, "forwarded_new")
        yield Case(f"least_{n}_loaded", "the less loaded of two", frame, "forwarded_new", LOADED)
        data = tcp(LEAST_VIP, flags="A", sport=4000 + n)
        yield Case(f"least_{n}_known", "it stays", data, "forwarded_flow", LOADED,
                   entry=entry(REAL_11, service="least"))  # fmt: skip
    for n, address in enumerate((REAL_11, REAL_12, REAL_13)):
        lone = LOADED.with_real("least", address, up=False, weight=0)
        yield Case(f"least_down_{n}", "one candidate may be down", tcp(LEAST_VIP, flags="A"), "forwarded_new",
                   lone, before=LOADED)  # fmt: skip
    yield Case("pass_port", "an unknown port, to be passed", tcp(PASS_VIP, 81), "unknown_passed")
    yield Case("pass_udp", "port 80 by UDP", udp(PASS_VIP, 80), "unknown_passed")
    yield Case("pass_gre", "another protocol", frames.other_protocol(47, PASS_VIP), "unknown_passed")
    yield Case("pass_service", "a known port", tcp(PASS_VIP), "forwarded_stable")
    bad = frames.lying(tcp(PASS_VIP), IP_AT, b"\x44")
    yield Case("pass_lies", "not what can't be read", bad, "bad_ip_header")
    mac = tcp(PASS_VIP, 81, link=ether(dst="02:00:00:00:00:77"))
    yield Case("pass_mac", "another host's", mac, "not_our_mac")


Pieces = Callable[..., tuple[bytes, bytes, bytes]]


def pieces4(vip: IPAddress, *, id: int = 77, proto: int = 17) -> tuple[bytes, bytes, bytes]:
    """The first, a middle and the last fragment of one packet."""
    first = lying(udp(vip, 53, payload=bytes(24), id=id, length=500), IP_AT + 6, b"\x20\0")
    middle = bytes(ether() / ip(vip, id=id, proto=proto, frag=4, flags="MF") / Raw(bytes(64)))
    last = bytes(ether() / ip(vip, id=id, proto=proto, frag=12) / Raw(bytes(9)))
    return first, middle, last


def pieces6(vip: IPAddress, *, id: int = 77, before: Any = None) -> tuple[bytes, bytes, bytes]:
    """The same for IPv6, with other extension headers before the fragment header."""

    def header(**fields: int) -> Any:
        fragment = IPv6ExtHdrFragment(id=id, nh=17, **fields)
        return fragment if before is None else before / fragment

    first = udp(vip, 53, sport=PORT, payload=bytes(24), length=500, extensions=header(m=1))
    middle = bytes(ether() / ip(vip) / header(offset=4, m=1) / Raw(bytes(64)))
    last = bytes(ether() / ip(vip) / header(offset=12) / Raw(bytes(9)))
    return first, middle, last


def _fragments() -> Iterator[Case]:
    sent = "forwarded_fragment"
    dest = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    makers: dict[str, Pieces] = {
        "4": pieces4,
        "6": pieces6,
        "6_ext": lambda vip, **more: pieces6(vip, before=dest, **more),
    }
    for name, pieces in makers.items():
        family = int(name[0])
        for way in [*WAYS, "dscp", "keep", "qinq"]:
            vip = tags_vip(way, "l2", family) if way in ("keep", "qinq") else mode_vip(way, family)
            first, middle, last = pieces(vip)
            base = f"fragment{name}_{way}"
            yield Case(f"{base}_first", "teaches", first, "forwarded_stable")
            yield Case(f"{base}_middle", "follows", middle, sent, first=(first,))
            yield Case(f"{base}_last", "follows", last, sent, first=(first, middle))
        for vip in (STICKY_VIP if family == 4 else STICKY_VIP6,):
            first, middle, last = pieces(vip)
            yield Case(f"fragment{name}_by_flow", "teaches", first, "forwarded_new")
            yield Case(f"fragment{name}_by_flow_last", "follows", last, sent, first=(first,))
            yield Case(f"fragment{name}_early", "before the first", last, "fragment_unknown")
            yield Case(f"fragment{name}_again", "the first, twice", first, "forwarded_flow", first=(first,))
            stranger = pieces(vip, id=78)[1]
            yield Case(
                f"fragment{name}_other", "of another packet", stranger, "fragment_unknown", first=(first,)
            )
            for part, frame in zip(("first", "middle", "last"), (first, middle, last), strict=True):
                yield Case(f"fragment{name}_{part}_dropped", "by policy", frame, "fragment", DROPPING)
                dying = frames.patched(frame, IP_AT + (8 if family == 4 else 7), b"\1")
                if family == 4:
                    dying = lying(frame, IP_AT + 8, b"\1")
                yield Case(f"fragment{name}_{part}_ttl", "would die", dying, "ttl_expired", first=(first,))
    yield from _aged()
    yield from _of_tcp()
    crowded = pieces4(STICKY_VIP)[0]
    yield Case("fragment_crowded", "no room", crowded, "forwarded_unrecorded", crowded=True)
    whole = tcp(WEB_VIP, flags="A")
    yield Case("fragment_dropping_whole", "the policy is for fragments", whole, "forwarded_stable", DROPPING)
    gre = lying(frames.other_protocol(47), IP_AT + 6, b"\x20\0")
    yield Case("fragment_gre", "a first one of GRE", gre, "unsupported_protocol")
    for size in (0, 7):
        short = lying(lying(udp(), IP_AT + 6, b"\x20\0"), IP_AT + 2, (20 + size).to_bytes(2, "big"))
        yield Case(f"fragment_short_udp_{size}", "a first one, in the padding", short, "bad_l4_header")
    later = lying(frames.other_protocol(47), IP_AT + 6, b"\x20\5")
    yield Case("fragment_gre_later", "a later one of GRE", later, "fragment_unknown")
    for reserved in (0, 1, 2, 3):
        atomic = tcp(WEB_VIP6, extensions=IPv6ExtHdrFragment(id=3, res2=reserved))
        yield Case(f"fragment_atomic_{reserved}", "is a whole packet", atomic, "forwarded_stable", DROPPING)
    # The last bits of the two fields
    for field, verdict in (
        (0x2001, "fragment_unknown"),
        (0x0001, "fragment_unknown"),
        (0x1FFF, "fragment_unknown"),
    ):
        frame = lying(udp(), IP_AT + 6, field.to_bytes(2, "big"))
        yield Case(f"fragment_field_{field:04x}", "a later one", frame, verdict)


def _of_tcp() -> Iterator[Case]:
    """Where a later fragment has no checksum, although its protocol would."""
    for way in ("fou6", "gue6", "dscp"):
        for family, header in (
            (4, ip(mode_vip(way, 4), frag=8, proto=6, id=77)),
            (6, ip(mode_vip(way, 6)) / IPv6ExtHdrFragment(id=77, nh=6, offset=8)),
        ):
            name = f"{way}-for-{family}"
            known = Entry(name, WORLD.service(name).reals[0], FlowState.FRAGMENT)
            later = bytes(ether() / header / Raw(bytes(range(64))))
            yield Case(f"fragment{family}_{way}_tcp", "none is written", later, "forwarded_fragment",
                       entry=known)  # fmt: skip


def _aged() -> Iterator[Case]:
    """Identifications are used again: where fragments went long ago says nothing of those of today."""
    for family, vip, pieces in ((4, STICKY_VIP, pieces4), (6, STICKY_VIP6, pieces6)):
        service = WORLD.service("sticky" if family == 4 else "sticky6")
        first, _, last = pieces(vip)
        # ahead of time by as much as another CPU's clock may be, new, just in time, too late, much too late
        for age, verdict in (
            (-16, "forwarded_fragment"),
            (0, "forwarded_fragment"),
            (FRAGMENT_TICKS, "forwarded_fragment"),
            (FRAGMENT_TICKS + 1, "fragment_unknown"),
            (32767, "fragment_unknown"),
            (40000, "fragment_unknown"),
        ):
            known = Entry(service.name, service.reals[1], FlowState.FRAGMENT, age)
            name = f"fragment{family}_aged_{age}"
            yield Case(name, "how long it is known", last, verdict, entry=known)
            again = Case(f"{name}_again", "the next first one", last, "forwarded_fragment", entry=known,
                         first=(first,))  # fmt: skip
            yield again


FLOW = [*_unstable(), *_schedulings(), *_fragments()]
