"""Cases of all ways to a real: tunnels over both IP versions, L3 DSR, VLAN tags, gateways, headroom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import ARP

from tests.packets import frames
from tests.packets.cases_base import Case
from tests.packets.frames import IP_AT, ether, from_client, lying, padded, patched, tags
from tests.packets.oracle_send import folded, updated
from tests.packets.world import (
    BEYOND_VIP,
    BOND_MAC,
    FAR_VIP,
    FAR_VIP6,
    NO_VIP,
    OUR_MAC,
    TAGS,
    TUNNEL_MTU,
    WAYS,
    WEB_VIP,
    WEB_VIP6,
    WORLD,
    Side,
    World,
    mode_vip,
    tags_vip,
)

L4 = {4: IP_AT + 20, 6: IP_AT + 40}
STABLE = "forwarded_stable"
PORT = 40003  # with which no flow here is looked up in tick 0
tcp, udp = partial(frames.tcp, sport=PORT), partial(frames.udp, sport=PORT)
LINKS = {"untagged": (), "q": (100,), "q0": (0,), "adq": (300, 100)}
_OUTER = {"4": 20, "6": 40}
_MORE = {"ipip": 0, "gre": 4, "fou": 8, "gue": 12}
SILENT = replace(WORLD, answers=False)
DATA = b"0123456789abcdefghi"  # an odd number of bytes


def room(way: str) -> int:
    """The largest packet that fits the tunnel."""
    return TUNNEL_MTU - _OUTER[way[-1]] - _MORE[way[:-1]]


def _ways() -> Iterator[Case]:
    """Every mode by every protocol, and what else the outer headers depend on."""
    for family in (4, 6):
        for way in [*WAYS, "dscp"]:
            vip, name = mode_vip(way, family), f"{way}_for_{family}"
            yield Case(f"{name}_syn", "a new connection", tcp(vip), STABLE)
            data = tcp(vip, flags="PA", payload=DATA)
            yield Case(f"{name}_tcp", "data", data, STABLE)
            datagram = udp(vip, 53, payload=DATA)
            yield Case(f"{name}_udp", "a datagram", datagram, STABLE)
            blank = patched(datagram, L4[family] + 6, b"\0\0")
            yield Case(f"{name}_udp_blank", "without a checksum, none outside", blank, STABLE)
            yield Case(f"{name}_padded", "the padding stays behind", padded(data, 200, b"\xaa"), STABLE)
            ecn = tcp(vip, flags="A", tos=0xBB)
            yield Case(f"{name}_tos", "traffic class and ECN go along", ecn, STABLE)
            yield Case(f"{name}_ttl", "one hop less inside", tcp(vip, ttl=2), STABLE)
            short = patched(udp(vip, 53, payload=DATA, length=20), L4[family] + 6, b"\x12\x34")
            yield Case(f"{name}_udp_tail", "bytes behind the datagram", short, STABLE)
            reset = tcp(vip, flags="R")
            yield Case(f"{name}_rst", "an end", reset, "forwarded_ending")


def _odd() -> Iterator[Case]:
    """Packets whose checksum the outer one can't be had from."""
    extended = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    for way in [*WAYS, "dscp"]:
        vip4, vip6 = mode_vip(way, 4), mode_vip(way, 6)
        yield Case(f"{way}_ext", "extension headers", tcp(vip6, extensions=extended), STABLE)
        first = tcp(vip6, extensions=IPv6ExtHdrFragment(id=5, m=1), payload=bytes(8))
        yield Case(f"{way}_first6", "a first fragment", first, STABLE)
        first = lying(tcp(vip4, payload=bytes(4)), IP_AT + 6, b"\x20\0")
        yield Case(f"{way}_first4", "a first fragment", first, STABLE)
        options = lying(_with_ip_options(tcp(vip4)), IP_AT + 8, b"\x40")
        yield Case(f"{way}_options", "IP options", options, STABLE)
        wrong = patched(tcp(vip4), IP_AT + 10, b"\x12\x34")
        if way[:-1] not in ("fou", "gue"):
            yield Case(f"{way}_wrong_ip_checksum", "stays wrong inside", wrong, STABLE)


def _with_ip_options(frame: bytes) -> bytes:
    longer = frame[:IP_AT] + b"\x46" + frame[IP_AT + 1 : IP_AT + 20] + b"\x01" * 4 + frame[IP_AT + 20 :]
    return lying(longer, IP_AT + 2, (len(longer) - IP_AT).to_bytes(2, "big"))


def with_checksum(frame: bytes, wanted: int) -> bytes:
    """The frame with an identification that gives its IPv4 header that (right) checksum."""
    blank = patched(frame[IP_AT : IP_AT + 20], 4, bytes(2))
    number = (0xFFFF ^ wanted) - folded(patched(blank, 10, bytes(2)))
    return lying(frame, IP_AT + 4, (number % 0xFFFF).to_bytes(2, "big"))


def _zero_sums() -> Iterator[Case]:
    """UDP checksums that come out as zero, which would say that there is none."""
    for family in (4, 6):
        vip = mode_vip("dscp", family)
        to = WORLD.service(f"dscp-for-{family}").reals[0].address
        check = next(n for n in range(1, 1 << 16) if not updated(n, vip.packed, to.packed))
        frame = patched(udp(vip, 53), L4[family] + 6, check.to_bytes(2, "big"))
        yield Case(f"dscp_zero_wrong_{family}", "becomes all ones", frame, STABLE)
    client = ip_address("198.51.100.9"), 1285  # found by trying
    outer = Case(
        "fou6_zero_wrong", "the same", from_client(tcp(mode_vip("fou6", 4), flags="A"), *client), STABLE
    )
    assert outer.expected.frame[L4[6] + 6 : L4[6] + 8] == b"\xff\xff"
    yield outer


def _with_mtu(name: str, mtu: int) -> World:
    """The world with another MTU on the way to one service's only real."""
    service = WORLD.service(name)
    real = replace(service.reals[0], forwarding=replace(service.reals[0].forwarding, mtu=mtu))
    changed = replace(service, reals=(real,))
    return replace(WORLD, services=tuple(changed if s is service else s for s in WORLD.services))


def _sizes() -> Iterator[Case]:
    """To the byte: what fits, and what the client is told of what doesn't."""
    for family in (4, 6):
        headers = {4: 40, 6: 60}[family]
        for way in WAYS:
            vip, name = mode_vip(way, family), f"{way}_for_{family}"
            most = room(way) - headers
            fits = tcp(vip, flags="A", payload=bytes(range(256)) * 5 + bytes(most - 1280))
            yield Case(f"{name}_fits", f"{room(way)} bytes", fits, STABLE)
            over = tcp(vip, flags="A", payload=b"\xa5" * (most + 1))
            yield Case(f"{name}_too_big", "one byte more", over, "too_big_answered")
            yield Case(f"{name}_limited", "answered too often", over, "too_big", SILENT)
            for link, ids in list(LINKS.items())[1:]:
                tagged = tcp(vip, flags="A", payload=b"\xa5" * (most + 1), link=tags(*ids))
                yield Case(f"{name}_too_big_{link}", "the answer has the tags", tagged, "too_big_answered")
        little = tcp(mode_vip("gue6", family), flags="A", payload=bytes(450))
        small = _with_mtu(f"gue6-for-{family}", 500)
        for name, frame in (("", little), ("_padded", padded(little, 1514))):
            yield Case(f"small_mtu_{family}{name}", "less than an answer quotes", frame, "too_big", small)
    trailing = padded(tcp(mode_vip("ipip4", 4), flags="A"), 1514, b"\xcc")
    yield Case("padding_fits", "padding is not counted", trailing, STABLE)
    later = frames.ip(mode_vip("ipip4", 4), frag=8, proto=6, id=77)
    teach = lying(tcp(mode_vip("ipip4", 4), payload=bytes(24), id=77), IP_AT + 6, b"\x20\0")
    big = bytes(ether() / later / bytes(1480))
    yield Case("fragment_too_big", "no error about a later IPv4 fragment", big, "too_big", first=(teach,))


def _tags() -> Iterator[Case]:
    """Every kind of tag that comes in, by every kind that the real wants."""
    for family in (4, 6):
        for wanted in TAGS:
            for way in ("l2", "gue6"):
                vip = tags_vip(wanted, way, family)
                for link, ids in LINKS.items():
                    frame = tcp(vip, link=tags(*ids))
                    yield Case(f"tags_{link}_{wanted}_{way}_for_{family}", "tags", frame, STABLE)
        vip = tags_vip("qinq", "l2", family)
        three = tcp(vip, link=tags(1, 2, 3))
        yield Case(f"tags_three_{family}", "too many to look behind", three, "too_many_tags")
        double = tcp(vip, link=tags(1, 2, outer_ad=False))
        yield Case(f"tags_q_q_{family}", "802.1Q twice", double, STABLE)
        mixed = patched(double, 14, b"\x60\1")
        yield Case(f"tags_priority_{family}", "the innermost tag's priority stays", mixed, STABLE)
        ad = patched(tcp(vip, link=tags(1)), 12, b"\x88\xa8")
        yield Case(f"tags_ad_{family}", "802.1ad alone", ad, STABLE)
    for check in (0xFEFF, 0xFEFE, 0xFF00):  # carries, or just not, when the TTL becomes less
        frame = with_checksum(tcp(WEB_VIP), check)
        tagged = frame[:12] + b"\x81\x00\x00\x64" + frame[12:]
        yield Case(f"tags_checksum_{check:04x}", "a checksum at the border", tagged, STABLE)
    for link, ids in LINKS.items():
        yield Case(f"tags_{link}_other", "another host's", tcp(NO_VIP, link=tags(*ids)), "not_vip")
        yield Case(f"tags_{link}_arp", "no IP behind", bytes(tags(*ids) / ARP()), "not_ip")
    whole = tcp(WEB_VIP6, link=tags(300, 100))
    for size in range(14, len(whole)):
        verdict = "unreadable" if size < 22 + 40 else "bad_ip_header"
        yield Case(f"tags_cut_{size}", f"{size} bytes of {len(whole)}", whole[:size], verdict)


def _gateways() -> Iterator[Case]:
    yield Case("l2_beyond", "L2 can't cross a router", tcp(BEYOND_VIP), "no_neighbour")
    for way in WAYS:
        spec = WORLD.service(f"{way}-for-4").reals[0]
        assert spec.mac is not None
        frame = tcp(mode_vip(way, 4), link=ether(src=spec.mac))
        yield Case(f"from_gateway_{way}", "the real's gateway is also the client's", frame, STABLE)
    dscp = WORLD.service("dscp-for-4").reals[0]
    frame = tcp(mode_vip("dscp", 4), link=ether(src=str(dscp.mac)))
    yield Case("dscp_looped", "the real itself is on link", frame, "looped")
    for family, vip in ((4, WEB_VIP), (6, WEB_VIP6)):
        for way in ("ipip6", "gue6", "dscp"):
            far = tcp(mode_vip(way, family), link=ether(dst=OUR_MAC[Side.FAR]))
            yield Case(f"far_{way}_{family}", "from the far side", far, STABLE, side=Side.FAR)
        yield Case(f"bare_l2_{family}", "no headroom needed", tcp(vip), STABLE, bare=True)
        for way in WAYS:
            yield Case(
                f"bare_{way}_{family}", "no headroom", tcp(mode_vip(way, family)), "no_headroom", bare=True
            )
        large = tcp(mode_vip("gue6", family), flags="A", payload=bytes(1480))
        yield Case(f"bare_too_big_{family}", "no headroom for the answer", large, "too_big", bare=True)
        pushed = tcp(tags_vip("qinq", "l2", family))
        yield Case(f"bare_push_{family}", "no headroom for a tag", pushed, "no_headroom", bare=True)
        popped = tcp(tags_vip("pop", "l2", family), link=tags(1, 2))
        yield Case(f"bare_pop_{family}", "shorter than before", popped, STABLE, bare=True)


def _bonds() -> Iterator[Case]:
    """Frames that come in by a member, or go to a real behind a bond: by every pair of sides and bonds."""
    for name, members in BONDS.items():
        world = replace(WORLD, bond=members)
        for side in Side:
            link = ether(dst=OUR_MAC[side])
            near, far = tcp(WEB_VIP, link=link), tcp(FAR_VIP, 53, link=link)
            yield Case(f"{name}_{side}_to_near", "to the near side", near, STABLE, world, side)
            yield Case(f"{name}_{side}_to_far", "to the far side", far, STABLE, world, side)
            gue = tcp(mode_vip("gue6", 4), link=link)
            yield Case(f"{name}_{side}_tunnel", "with outer headers", gue, STABLE, world, side)
            bonds = tcp(WEB_VIP, link=ether(dst=BOND_MAC))
            yield Case(
                f"{name}_{side}_other_mac", "the member's own address", bonds, "not_our_mac", world, side
            )


def _cuts() -> Iterator[Case]:
    """No member of the far side's bond is running, or the far link is none of ours any more."""
    cut = frozenset({Side.FAR})
    for name, members in {"bond_far": cut, "bond": frozenset(Side), "link": frozenset[Side]()}.items():
        case = partial(Case, world=replace(WORLD, bond=members, cut=cut))
        verdict = STABLE if name == "bond" else "no_exit"
        for family, vip in ((4, FAR_VIP), (6, FAR_VIP6)):
            base = f"cut_{name}_{family}"
            datagram = udp(vip, 53, payload=DATA)
            yield case(f"{base}", "nothing leads there", datagram, verdict)
            tagged = udp(vip, 53, link=tags(100))
            yield case(f"{base}_tagged", "the same with a tag", tagged, verdict)
            end = tcp(vip, 53 if family == 4 else 80, flags="R")
            yield case(f"{base}_end", "an end", end, "forwarded_ending" if name == "bond" else verdict)
            near = tcp(WEB_VIP if family == 4 else WEB_VIP6)
            yield case(f"{base}_near", "the near side is none of it", near, STABLE)
        if name != "link":
            back = udp(FAR_VIP, 53, link=ether(dst=OUR_MAC[Side.FAR]))
            yield case(f"cut_{name}_back", "by the member it came in by", back, STABLE, side=Side.FAR)


BONDS = {
    "bond": frozenset(Side),
    "bond_near": frozenset({Side.NEAR}),
    "bond_far": frozenset({Side.FAR}),
}
FORWARD = [*_bonds(), *_cuts(), *_ways(), *_odd(), *_zero_sums(), *_sizes(), *_tags(), *_gateways()]
