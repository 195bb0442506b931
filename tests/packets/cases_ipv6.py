"""Cases of plain IPv6: services, extension headers, lies, truncation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)

from tests.packets import frames
from tests.packets.cases_base import Case, entry, sampled_port
from tests.packets.frames import IP_AT, MIN_FRAME, ether, padded, patched, tcp, udp
from tests.packets.harness import Entry
from tests.packets.world import DARK_VIP6, FAR_VIP6, NO_VIP6, OUR_MAC, PASS_VIP6, WEB_VIP6, WORLD, Side
from vc5py.model import IPAddress

HEADER = 40
L4_AT = IP_AT + HEADER
PORT = 40002  # of a flow that is not sampled in tick 0
SAMPLED = sampled_port(vip=WEB_VIP6)
WEB6 = WORLD.service("web6")
WEB6_11_DOWN = WORLD.with_real("web6", WEB6.reals[0].address, up=False, weight=0)


def known(n: int = 0) -> Entry:
    return entry(WEB6.reals[n].address, service="web6")


def _services() -> Iterator[Case]:
    vip = WEB_VIP6
    yield Case("v6_syn", "a new connection", tcp(vip), "forwarded_stable")
    yield Case("v6_ack", "the middle of a connection", tcp(vip, flags="A"), "forwarded_stable")
    sampled = tcp(vip, flags="A", sport=SAMPLED)
    yield Case("v6_sampled", "recorded in the tick of its sampling", sampled, "forwarded_new")
    for n in range(3):
        yield Case(f"v6_known_{n}", "the flow table knows it", sampled, "forwarded_flow", entry=known(n))
    down = Case("v6_rehashed", "its real is down", sampled, "forwarded_rehashed", WEB6_11_DOWN, entry=known())
    yield down
    yield Case("v6_fin", "the end of an unknown one", tcp(vip, flags="FA"), "forwarded_ending")
    yield Case("v6_rst", "a reset of an unknown one", tcp(vip, flags="R"), "forwarded_ending")
    yield Case("v6_crowded", "no room for it", tcp(vip, sport=SAMPLED), "forwarded_unrecorded", crowded=True)
    yield Case("v6_udp", "a datagram", udp(vip, sport=PORT), "forwarded_stable")
    blank = patched(udp(vip, sport=PORT), L4_AT + 6, b"\0\0")
    yield Case("v6_udp_no_checksum", "illegal, but not ours to judge", blank, "forwarded_stable")
    yield Case("v6_full_size", "1,500 bytes", tcp(vip, flags="A", payload=bytes(1440)), "forwarded_stable")
    yield Case("v6_no_service", "an unknown port", tcp(vip, 81), "no_service")
    yield Case("v6_other_protocol", "port 80 by UDP", udp(vip, 80), "no_service")
    yield Case("v6_passed", "an unknown port, to be passed", tcp(PASS_VIP6, 81), "unknown_passed")
    yield Case("v6_dark", "no real is up", tcp(DARK_VIP6), "no_backend")
    yield Case("v6_not_vip", "another address", tcp(NO_VIP6), "not_vip")
    yield Case("v6_other_mac", "another host's", tcp(vip, link=ether(dst=OUR_MAC[Side.FAR])), "not_our_mac")
    yield Case("v6_near_to_far", "the real is on the other interface", tcp(FAR_VIP6), "forwarded_stable")
    far = ether(dst=OUR_MAC[Side.FAR])
    yield Case("v6_far_to_near", "the other way", tcp(vip, link=far), "forwarded_stable", side=Side.FAR)
    yield Case("v6_far_to_far", "the same", tcp(FAR_VIP6, link=far), "forwarded_stable", side=Side.FAR)
    looped = ether(src=str(WORLD.service("far6").reals[0].mac))
    yield Case("v6_looped", "the real sends it back", tcp(FAR_VIP6, link=looped), "looped")
    for ttl in (0, 1):
        yield Case(f"v6_hop_limit_{ttl}", "would die", tcp(vip, ttl=ttl), "ttl_expired")
    for ttl in (2, 64, 255):
        yield Case(f"v6_hop_limit_{ttl}", "lives on", tcp(vip, ttl=ttl), "forwarded_stable")
    for tos in (3, 0xB8, 0xFF):
        yield Case(
            f"v6_tc_{tos:02x}", "traffic class is kept", tcp(vip, tos=tos, fl=0xABCDE), "forwarded_stable"
        )
    yield Case("v6_padded", "trailing bytes", padded(tcp(vip), 200, b"\xaa"), "forwarded_stable")
    for number in (1, 4, 41, 47, 50, 51, 59, 89, 132, 135, 139, 255):
        frame = bytes(ether() / frames.ip(vip, nh=number) / bytes(32))
        yield Case(f"v6_protocol_{number}", "neither TCP nor UDP", frame, "unsupported_protocol")


HOP, DEST = IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt
PAD = PadN(optdata=bytes(4))


def routing(left: int) -> IPv6ExtHdrRouting:
    return IPv6ExtHdrRouting(type=4, addresses=["fd00::1"], segleft=left)


def chain(count: int) -> Any:
    """That many destination options headers."""
    headers = DEST(options=[PAD])
    for _ in range(count - 1):
        headers = headers / DEST(options=[PAD])
    return headers


def _extensions() -> Iterator[Case]:
    headers = {
        "hop": HOP(options=[PAD]),
        "dest": DEST(options=[PAD]),
        "long": DEST(options=[PadN(optdata=bytes(200))]),
        "routed": routing(0),
        "atomic": IPv6ExtHdrFragment(id=77),
        "all": HOP(options=[PAD]) / DEST(options=[PAD]) / routing(0) / DEST(options=[PAD]),
        "six": chain(6),
    }
    for name, extensions in headers.items():
        yield Case(
            f"ext_{name}_tcp", "looked through", tcp(WEB_VIP6, extensions=extensions), "forwarded_stable"
        )
        yield Case(
            f"ext_{name}_udp",
            "looked through",
            udp(WEB_VIP6, sport=PORT, extensions=extensions),
            "forwarded_stable",
        )
    bad = {"left_1": routing(1), "left_255": routing(255), "seven": chain(7), "hop_left": HOP() / routing(2)}
    for name, extensions in bad.items():
        frame = tcp(WEB_VIP6, extensions=extensions)
        yield Case(f"ext_{name}", "can't be followed", frame, "bad_extension")
        other = tcp(NO_VIP6, extensions=extensions)
        yield Case(f"ext_{name}_other", "not for us", other, "not_vip")
    late = IPv6ExtHdrFragment(id=1, offset=5)
    yield Case(
        "ext_six_later", "as many as may be", tcp(WEB_VIP6, extensions=chain(5) / late), "fragment_unknown"
    )
    yield Case("ext_seven_later", "one too many", tcp(WEB_VIP6, extensions=chain(6) / late), "bad_extension")
    whole = tcp(WEB_VIP6, extensions=HOP(options=[PAD]))
    yield Case("ext_beyond", "longer than the packet", patched(whole, L4_AT + 1, b"\x20"), "bad_extension")
    # The packet ends with its IPv6 header; what its chain points at lies in the padding.
    padding = patched(whole, IP_AT + 4, b"\0\0")
    yield Case("ext_in_padding", "the chain goes on in the padding", padding, "bad_extension")
    part = patched(whole, IP_AT + 4, b"\0\4")
    yield Case("ext_part_in_padding", "half of it in the padding", part, "bad_extension")
    fragment = tcp(WEB_VIP6, extensions=IPv6ExtHdrFragment(id=1, offset=5))
    yield Case("ext_fragment_in_padding", "likewise", patched(fragment, IP_AT + 4, b"\0\0"), "bad_extension")
    l4 = patched(whole, IP_AT + 4, b"\0\x08")
    yield Case("ext_tcp_in_padding", "only TCP is in the padding", l4, "bad_l4_header")


def _lies() -> Iterator[Case]:
    vip: IPAddress = WEB_VIP6
    for version in (0, 4, 5, 15):
        frame = patched(tcp(vip), IP_AT, bytes([version << 4]))
        yield Case(f"v6_version_{version}", "not version 6", frame, "bad_ip_header")
    for length in (21, 1500, 65535):
        frame = patched(tcp(vip), IP_AT + 4, length.to_bytes(2, "big"))
        yield Case(f"v6_length_{length}", "more than there is", frame, "bad_ip_header")
    for length in (0, 1, 19):
        frame = patched(tcp(vip), IP_AT + 4, length.to_bytes(2, "big"))
        yield Case(f"v6_length_{length}", "TCP lies in the padding", frame, "bad_l4_header")
    for length in (0, 7):
        frame = patched(udp(vip), IP_AT + 4, length.to_bytes(2, "big"))
        yield Case(f"v6_udp_in_padding_{length}", "UDP lies in the padding", frame, "bad_l4_header")
    for doff in (0, 4, 6, 15):
        frame = patched(tcp(vip), L4_AT + 12, bytes([doff << 4]))
        yield Case(f"v6_doff_{doff}", "an impossible TCP header", frame, "bad_l4_header")
    for length in (0, 7, 14, 65535):
        yield Case(f"v6_udp_length_{length}", "not 13", udp(vip, length=length), "bad_l4_header")
    for length in (0, 7, 41, 65535):  # a longer one, as a whole TCP header would be
        lie = udp(vip, sport=PORT, payload=bytes(32), length=length)
        yield Case(f"v6_udp_long_length_{length}", "not 40", lie, "bad_l4_header")


def _truncated() -> Iterator[Case]:
    """Every frame cut off at every byte, and every packet within a frame."""
    whole = {
        "tcp": tcp(WEB_VIP6, flags="PA", payload=b"12345"),
        "udp": udp(WEB_VIP6),
        "ping": frames.ping(WEB_VIP6),
        "hop": tcp(WEB_VIP6, extensions=HOP(options=[PAD]) / routing(0)),
        "fragment": tcp(WEB_VIP6, extensions=IPv6ExtHdrFragment(id=1, m=1)),
    }
    for name, frame in whole.items():
        for size in range(MIN_FRAME, len(frame)):
            verdict = "unreadable" if size < L4_AT else "bad_ip_header"
            yield Case(f"v6_cut_{name}_{size}", f"{size} bytes of {len(frame)}", frame[:size], verdict)
    for name, first in (("tcp", 20), ("udp", 8), ("ping", 8), ("hop", 52), ("fragment", 28)):
        for size in range(first):
            # The IP header agrees with the cut: only the next header is short.
            cut = patched(whole[name][: L4_AT + size], IP_AT + 4, size.to_bytes(2, "big"))
            chained = {"hop": 32, "fragment": 8}.get(name, 0)
            verdict = "bad_extension" if size < chained else "bad_l4_header"
            yield Case(f"v6_short_{name}_{size}", "a truncated header", cut, verdict)


IPV6 = [*_services(), *_extensions(), *_lies(), *_truncated()]
