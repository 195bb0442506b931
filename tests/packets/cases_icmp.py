"""Cases of ICMP and ICMPv6 for a VIP: pings, errors about flows and about nothing, truncated quotes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    PadN,
)
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from tests.packets.cases_base import REAL_11, REAL_12, WEB_11_DOWN, Case, entry
from tests.packets.cases_ipv6 import WEB6, WEB6_11_DOWN
from tests.packets.frames import IP_AT, ether, ip, lying, padded, patched, ping, tags, tcp
from tests.packets.oracle import read_tuple
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    DARK_VIP,
    MIXED_VIP,
    NO_VIP,
    NO_VIP6,
    OUR_MAC,
    PASS_VIP,
    STICKY_VIP,
    STICKY_VIP6,
    TAGS,
    WAYS,
    WEB_VIP,
    WEB_VIP6,
    WORLD,
    Side,
    mode_vip,
    tags_vip,
)
from vc5py.dataplane.abi import FlowState
from vc5py.model import IPAddress

TAGGED = {"q": (100,), "q0": (0,), "adq": (300, 100)}
ROUTER, ROUTER6 = "203.0.113.9", "2001:db8:f::9"
KINDS4 = {
    "unreachable": ICMP(type=3, code=1),
    "frag_needed": ICMP(type=3, code=4, nexthopmtu=1400),
    "time_exceeded": ICMP(type=11),
    "parameter": ICMP(type=12, ptr=9),
}
KINDS6 = {
    "unreachable": ICMPv6DestUnreach(code=1),
    "too_big": ICMPv6PacketTooBig(mtu=1400),
    "time_exceeded": ICMPv6TimeExceeded(),
    "parameter": ICMPv6ParamProblem(ptr=9),
}


def quote(vip: IPAddress, port: int = 80, *, cport: int = 40000, extensions: Layer | None = None,
          layer: type[Layer] = TCP, client: IPAddress | None = None) -> bytes:  # fmt: skip
    """What the real sent the client, as a router quotes it."""
    client = client or (CLIENT if vip.version == 4 else CLIENT6)
    kind = IP if vip.version == 4 else IPv6
    header = kind(src=str(vip), dst=str(client))
    if extensions is not None:
        header = header / extensions
    return bytes(header / layer(sport=port, dport=cport) / Raw(b"hello"))


def error(kind: Layer, vip: IPAddress, quoted: bytes, *, link: Layer | None = None, ttl: int = 64) -> bytes:
    """An ICMP error from a router on the way, to the VIP."""
    header = IP(src=ROUTER, dst=str(vip), ttl=ttl) if vip.version == 4 else IPv6(
        src=ROUTER6, dst=str(vip), hlim=ttl
    )  # fmt: skip
    return bytes((link or ether()) / header / kind.copy() / Raw(quoted))


def _echo() -> Iterator[Case]:
    for family, vip, other, dark in ((4, WEB_VIP, NO_VIP, DARK_VIP), (6, WEB_VIP6, NO_VIP6, WEB_VIP6)):
        name, answered = f"ping{family}", "echo_answered"
        yield Case(name, "echo request", ping(vip), answered)
        yield Case(f"{name}_dark", "whether reals are up or not", ping(dark), answered)
        for size in (0, 1, 2, 7, 1400):
            yield Case(f"{name}_{size}", f"{size} bytes", ping(vip, payload=bytes(range(250)) * 6), answered)
        for ttl in (0, 1, 63, 65, 255):
            yield Case(f"{name}_ttl_{ttl}", "we are its destination", ping(vip, ttl=ttl), answered)
        yield Case(f"{name}_padded", "with a trailer", padded(ping(vip), 100, b"\xaa"), answered)
        for link, ids in TAGGED.items():
            yield Case(f"{name}_{link}", "with tags", ping(vip, link=tags(*ids)), answered)
        yield Case(f"{name}_other", "another host's", ping(other), "not_vip")
        yield Case(f"{name}_mac", "another MAC", ping(vip, link=ether(dst=OUR_MAC[Side.FAR])), "not_our_mac")
        far = ping(vip, link=ether(dst=OUR_MAC[Side.FAR]))
        yield Case(f"{name}_far", "on the far side", far, answered, side=Side.FAR)
        l4 = IP_AT + (20 if family == 4 else 40)
        yield Case(f"{name}_code", "no such code", patched(ping(vip), l4 + 1, b"\1"), "bad_icmp")
        wrong = patched(ping(vip), l4 + 2, b"\x12\x34")
        yield Case(f"{name}_wrong", "a wrong checksum stays wrong", wrong, answered)
        for kind in (0, 5, 8, 9, 10, 13, 17, 127, 128, 129, 133, 134, 135, 136, 137, 255):
            if kind != (8 if family == 4 else 128):
                frame = patched(ping(vip), l4, bytes([kind]))
                yield Case(f"{name}_type_{kind}", "of no use here", frame, "bad_icmp")
    for size in range(8):
        short = lying(ping(), IP_AT + 2, (20 + size).to_bytes(2, "big"))
        yield Case(f"ping4_in_padding_{size}", "the rest is padding", short, "bad_l4_header")
        short = patched(ping(WEB_VIP6), IP_AT + 4, size.to_bytes(2, "big"))
        yield Case(f"ping6_in_padding_{size}", "the rest is padding", short, "bad_l4_header")
    yield Case("ping4_fragment", "a fragment", lying(ping(), IP_AT + 6, b"\x20\0"), "fragment")
    frame = bytes(ether() / ip(WEB_VIP6) / IPv6ExtHdrFragment(id=3, m=1, nh=58) / Raw(b"\x80\0" + bytes(20)))
    yield Case("ping6_fragment", "a fragment", frame, "fragment")
    yield Case("ping_pass", "policies are for ports", ping(PASS_VIP), "echo_answered")


def _errors() -> Iterator[Case]:
    for family, vip, kinds, sticky in (
        (4, WEB_VIP, KINDS4, STICKY_VIP),
        (6, WEB_VIP6, KINDS6, STICKY_VIP6),
    ):
        real, service = (REAL_12, "web") if family == 4 else (WEB6.reals[1].address, "web6")
        down = WEB_11_DOWN if family == 4 else WEB6_11_DOWN
        for name, kind in kinds.items():
            name = f"{name}_{family}"
            frame = error(kind, vip, quote(vip))
            yield Case(name, "about a flow", frame, "forwarded_icmp")
            known = entry(real, service=service)
            yield Case(f"{name}_known", "about a known one", frame, "forwarded_icmp", entry=known)
            udp = error(kind, vip, quote(vip, 443, layer=UDP))
            yield Case(f"{name}_udp", "about a datagram", udp, "forwarded_icmp")
            for number in (0, 1) if family == 4 else ():
                of_shell = WORLD.service("shell").reals[number]
                known = entry(of_shell.address, service="shell")
                yield Case(f"{name}_shell_{number}", "an entry of another service's", frame, "forwarded_icmp",
                           entry=known)  # fmt: skip
            by_address = error(kind, sticky, quote(sticky))
            yield Case(f"{name}_sticky", "about a sticky flow", by_address, "forwarded_icmp")
            none = error(kind, vip, quote(vip, 81))
            yield Case(f"{name}_no_service", "about no service", none, "bad_icmp")
            other = error(kind, vip, quote(sticky))
            yield Case(f"{name}_other_vip", "about another VIP's flow", other, "bad_icmp")
            yield Case(f"{name}_ttl", "would die", error(kind, vip, quote(vip), ttl=1), "ttl_expired")
            for link, ids in TAGGED.items():
                ours = error(kind, vip, quote(vip), link=tags(*ids))
                yield Case(f"{name}_{link}", "with tags", ours, "forwarded_icmp")
                for wanted in TAGS:
                    to = tags_vip(wanted, "l2", family)
                    moved = error(kind, to, quote(to), link=tags(*ids))
                    yield Case(f"{name}_{link}_{wanted}", "with other tags", moved, "forwarded_icmp")
            gone = entry(REAL_11 if family == 4 else WEB6.reals[0].address, service=service)
            yield Case(f"{name}_down", "its real is down", frame, "forwarded_icmp", down, entry=gone)
            for way in [*WAYS, "dscp"]:
                to = mode_vip(way, family)
                sent = error(kind, to, quote(to))
                yield Case(f"{name}_{way}", "by every way", sent, "forwarded_icmp")
            pushed = tags_vip("qinq", "l2", family)
            tagged = error(kind, pushed, quote(pushed))
            yield Case(f"{name}_push", "with new tags", tagged, "forwarded_icmp")
            large = mode_vip("gue6", family)
            frame = error(kind, large, quote(large) + bytes(1400))
            yield Case(f"{name}_too_big", "no error about an error", frame, "too_big")
    dark = error(KINDS4["unreachable"], DARK_VIP, quote(DARK_VIP))
    yield Case("error_no_backend", "no real is up", dark, "no_backend")
    far = error(KINDS4["frag_needed"], MIXED_VIP, quote(MIXED_VIP, cport=40001))
    yield Case("error_mixed", "near or far", far, "forwarded_icmp")


def _quotes() -> Iterator[Case]:
    """Quotes cut at every byte, in the packet and in the frame, and quotes that lie."""
    for family, vip, kind in ((4, WEB_VIP, KINDS4["frag_needed"]), (6, WEB_VIP6, KINDS6["too_big"])):
        header, whole = {4: 20, 6: 40}[family], quote(vip)
        for size in range(header + 4):
            cut = error(kind, vip, whole[:size])
            yield Case(f"quote{family}_{size}", f"{size} bytes quoted", cut, "bad_icmp")
            padding = padded(cut, len(cut) + 60)
            trailer = cut + whole[size:] + bytes(20) if size else padding
            yield Case(f"quote{family}_{size}_padded", "the rest is in the padding", trailer, "bad_icmp")
        least = error(kind, vip, whole[: header + 4])
        yield Case(f"quote{family}_least", "up to the ports", least, "forwarded_icmp")
        for at, bytes_, name in (
            (0, b"\x55" if family == 4 else b"\x40", "version"),
            (header - 20, b"\0", "ihl"),
        ):
            if family == 4 or name == "version":
                wrong = patched(whole, at, b"\x44" if name == "ihl" else bytes_)
                yield Case(f"quote{family}_{name}", "a lie", error(kind, vip, wrong), "bad_icmp")
        protocol = patched(whole, {4: 9, 6: 6}[family], b"\x2f")
        yield Case(f"quote{family}_gre", "of GRE", error(kind, vip, protocol), "bad_icmp")
        sent = error(kind, vip, whole)
        for size in range(IP_AT + header, len(sent)):
            yield Case(f"error{family}_cut_{size}", "a truncated frame", sent[:size], "bad_ip_header")
    options = b"\x46" + quote(WEB_VIP)[1:20] + b"\1\1\1\1" + quote(WEB_VIP)[20:]
    yield Case(
        "quote4_options", "IP options", error(KINDS4["unreachable"], WEB_VIP, options), "forwarded_icmp"
    )
    first = patched(quote(WEB_VIP), 6, b"\x20\0")
    yield Case(
        "quote4_first", "of a fragment", error(KINDS4["frag_needed"], WEB_VIP, first), "forwarded_icmp"
    )
    later = patched(quote(WEB_VIP), 6, b"\x20\5")
    yield Case(
        "quote4_later", "of a later fragment", error(KINDS4["frag_needed"], WEB_VIP, later), "bad_icmp"
    )
    extended = quote(WEB_VIP6, extensions=IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]))
    yield Case("quote6_ext", "extensions", error(KINDS6["too_big"], WEB_VIP6, extended), "forwarded_icmp")
    for offset, verdict in ((0, "forwarded_icmp"), (5, "bad_icmp")):
        fragment = quote(WEB_VIP6, extensions=IPv6ExtHdrFragment(id=9, m=1, offset=offset))
        frame = error(KINDS6["too_big"], WEB_VIP6, fragment)
        yield Case(f"quote6_fragment_{offset}", "of a fragment", frame, verdict)


NO_HOSTS = {
    4: ("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.255.255.255",
        "240.0.0.0", "255.255.255.255"),
    6: ("::", "::1", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
}  # fmt: skip
HOSTS = {  # the nearest to those
    4: ("1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255"),
    6: ("::2", "::100", "0:0:0:1::", "1::", "0:0:0:1::1", "feff::1", "fe80::1", "ff:ff02::1"),
}


def _sources() -> Iterator[Case]:
    """Nobody is answered who can't be a single host; what needs no answer goes on its way."""
    for family, vip in ((4, WEB_VIP), (6, WEB_VIP6)):
        tunnel = mode_vip("gue6", family)
        large = partial(tcp, tunnel, flags="A", payload=bytes(1480), sport=40003)
        for verdicts, sources in ((("bad_source", "bad_source"), NO_HOSTS[family]),
                                  (("echo_answered", "too_big_answered"), HOSTS[family])):  # fmt: skip
            for source in map(ip_address, sources):
                frame = ping(vip, src=source)
                yield Case(f"source_{source}_ping", "may it be answered?", frame, verdicts[0])
                yield Case(f"source_{source}_too_big", "the same", large(src=source), verdicts[1])
                fits = tcp(tunnel, flags="A", src=source, sport=sure_port(tunnel, source))
                yield Case(f"source_{source}_fits", "no answer needed", fits, "forwarded_stable")
        group = ip_address(NO_HOSTS[family][-2])
        for link, ids in TAGGED.items():
            tagged = ping(vip, src=group, link=tags(*ids))
            yield Case(f"source_{group}_{link}", "with tags", tagged, "bad_source")
        silent = replace(WORLD, answers=False)
        yield Case(f"source_silent_{family}", "not for the rate", large(src=group), "bad_source", silent)
    header = ip(mode_vip("ipip4", 4), ip_address("224.0.0.1"), frag=8, proto=6, id=77)
    later = bytes(ether() / header / bytes(1480))
    known = entry(WORLD.service("ipip4-for-4").reals[0].address, FlowState.FRAGMENT, service="ipip4-for-4")
    yield Case("source_later_fragment4", "never answered anyway", later, "too_big", entry=known)
    header = ip(mode_vip("ipip4", 6), ip_address("ff02::1")) / IPv6ExtHdrFragment(id=7, nh=6, offset=8)
    known = entry(WORLD.service("ipip4-for-6").reals[0].address, FlowState.FRAGMENT, service="ipip4-for-6")
    yield Case("source_later_fragment6", "else answered", bytes(ether() / header / bytes(1480)),
               "bad_source", entry=known)  # fmt: skip


def sure_port(vip: IPAddress, source: IPAddress) -> int:
    """A source port with which this client's flow is not looked up in tick 0."""
    return next(n for n in range(40003, 41000) if not read_tuple(tcp(vip, src=source, sport=n)).sampled)


ICMP_CASES = [*_echo(), *_errors(), *_quotes(), *_sources()]
