"""The oracle against scapy, which builds headers from their fields and computes checksums from scratch."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, _ICMPv6
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.packets.cases import CASES
from tests.packets.cases_base import Case, oracle_for
from tests.packets.cases_flow import pieces4, pieces6
from tests.packets.cases_forward import DATA, PORT, room
from tests.packets.cases_icmp import HOSTS, NO_HOSTS, ROUTER, ROUTER6, error, quote
from tests.packets.frames import ether, ip, ping, tcp, udp
from tests.packets.oracle import ACTIONS, FRAGMENT_TICKS, Flows, fragment_name, read_tuple
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    DSCP,
    FOU_PORT,
    GUE_PORT,
    OUR_MAC,
    ROUTER_MAC,
    SOURCES,
    WAYS,
    WORLD,
    Side,
    mode_vip,
    tags_vip,
)
from vc5py.dataplane.abi import Action
from vc5py.dataplane.policy import FRAGMENT_TIMEOUT_S
from vc5py.dataplane.ticks import TickClock

# Their inputs are wrong, or too short for a right checksum.
_WRONG = ("wrong", "blank", "fragment", "first", "checksum", "lies", "udp_like", "odd_length", "tail",
         "quote", "udp_length_8", "sticky_client")  # fmt: skip
RIGHT = [
    case
    for case in CASES
    if ACTIONS[case.verdict] in (Action.FORWARD, Action.ANSWER)
    and not any(word in case.id for word in _WRONG)
]


def rebuilt(frame: bytes) -> bytes:
    """The frame with all checksums computed anew; an absent one of UDP stays absent."""
    layers = Ether(frame)
    layer = layers
    while layer:
        if type(layer) in (IP, TCP, ICMP) or (type(layer) is UDP and layer.chksum):
            del layer.chksum
        elif isinstance(layer, _ICMPv6):
            del layer.cksum
        layer = layer.payload
    return bytes(layers)


def sums_are_right(frame: bytes) -> bool:
    return rebuilt(frame) == frame


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.id)
def test_every_checksum_is_right(case: Case) -> None:
    """That of the outermost IP header, and of all others that can be followed from there."""
    if not sums_are_right(case.frame):
        pytest.fail("the case's own checksums are wrong: its name should say so")
    assert sums_are_right(case.expected.frame)


def sent_to(vip: Any, frame: bytes) -> bytes:
    outcome = oracle_for(WORLD, None).predict(frame, {})
    assert ACTIONS[str(outcome.verdict)] is Action.FORWARD
    return outcome.frame


def link_to(mac: str | None) -> Any:
    return Ether(dst=mac, src=OUR_MAC[Side.NEAR])


def outer(way: str, real: Any, flow_hash: int, inner: Any, *, summed: bool = True) -> Any:
    """What goes in front of the inner packet. `summed`: whether UDP over IPv6 has a checksum."""
    if way[-1] == "4":
        header = IP(src=str(SOURCES[4]), dst=str(real.address), id=0, flags="DF", ttl=64)
    else:
        label = flow_hash >> 32 & 0xFFFFF
        header = IPv6(src=str(SOURCES[6]), dst=str(real.address), hlim=64, fl=label)
    protocol = 4 if isinstance(inner, IP) else 41
    if way[:-1] == "ipip":
        return header / inner
    if way[:-1] == "gre":
        return header / GRE() / inner
    sport = 0xC000 | flow_hash >> 32 & 0x3FFF
    gue = way[:-1] == "gue"
    datagram = UDP(sport=sport, dport=GUE_PORT if gue else FOU_PORT)
    if way[-1] == "4" or not summed:
        datagram.chksum = 0
    return header / datagram / Raw((bytes([0, protocol, 0, 0]) if gue else b"") + bytes(inner))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_tunnels(way: str, family: int, protocol: str) -> None:
    vip, real = mode_vip(way, family), WORLD.service(f"{way}-for-{family}").reals[0]
    if protocol == "tcp":
        frame = tcp(vip, flags="PA", payload=DATA, sport=PORT)
        l4 = TCP(sport=PORT, dport=80, flags="PA", seq=1000, ack=2000)
    else:
        frame, l4 = udp(vip, 53, payload=DATA, sport=PORT), UDP(sport=PORT, dport=53)
    inner = ip(vip, ttl=63) / l4 / Raw(DATA)
    expected = link_to(real.mac) / outer(way, real, read_tuple(frame).hash, inner)
    assert sent_to(vip, frame) == bytes(expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_icmp_errors(way: str, family: int, protocol: str) -> None:
    """They have the entropy of the flow that they are about."""
    vip, real = mode_vip(way, family), WORLD.service(f"{way}-for-{family}").reals[0]
    layer, ours = (TCP, 80) if protocol == "tcp" else (UDP, 53)
    quoted = quote(vip, ours, layer=layer, cport=PORT)
    if family == 4:
        about, router = ICMP(type=3, code=4, nexthopmtu=1400), ROUTER
        inner = IP(src=router, dst=str(vip), ttl=63) / about / Raw(quoted)
    else:
        about, router = ICMPv6PacketTooBig(mtu=1400), ROUTER6
        inner = IPv6(src=router, dst=str(vip), hlim=63) / about / Raw(quoted)
    make = tcp if protocol == "tcp" else udp
    flow = read_tuple(make(vip, ours, sport=PORT)).hash
    expected = link_to(real.mac) / outer(way, real, flow, inner, summed=False)
    assert sent_to(vip, error(about, vip, quoted)) == bytes(expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_fragments(way: str, family: int) -> None:
    """A later one follows the first; its entropy is of what all fragments of the packet have in common."""
    vip, real = mode_vip(way, family), WORLD.service(f"{way}-for-{family}").reals[0]
    first, middle, last = (pieces4 if family == 4 else pieces6)(vip)
    if family == 4:
        middle_inner = ip(vip, ttl=63, id=77, proto=17, frag=4, flags="MF") / Raw(bytes(64))
        last_inner = ip(vip, ttl=63, id=77, proto=17, frag=12) / Raw(bytes(9))
    else:
        middle_inner = ip(vip, ttl=63) / IPv6ExtHdrFragment(id=77, nh=17, offset=4, m=1) / Raw(bytes(64))
        last_inner = ip(vip, ttl=63) / IPv6ExtHdrFragment(id=77, nh=17, offset=12) / Raw(bytes(9))
    flows: Flows = {}
    oracle = oracle_for(WORLD, None)
    assert oracle.predict(last, flows).verdict == "fragment_unknown"
    assert oracle.predict(first, flows).verdict == "forwarded_stable"
    for frame, inner in ((middle, middle_inner), (last, last_inner)):
        got = oracle.predict(frame, flows)
        expected = link_to(real.mac) / outer(way, real, fragment_name(frame), inner, summed=False)
        assert (got.verdict, got.frame) == ("forwarded_fragment", bytes(expected))
    [name] = flows
    flows[name] = replace(flows[name], age=FRAGMENT_TICKS + 1)
    assert oracle.predict(last, flows).verdict == "fragment_unknown"


def test_how_long_a_fragment_is_remembered() -> None:
    clock = TickClock(100)
    assert clock.ticks(FRAGMENT_TIMEOUT_S) == FRAGMENT_TICKS


@pytest.mark.parametrize("family", [4, 6])
def test_who_is_answered(family: int) -> None:
    """By what Python knows of addresses, which is more than the oracle's list says."""
    for text in (*NO_HOSTS[family], *HOSTS[family]):
        source = ip_address(text)
        known = source.is_multicast or source.is_unspecified or source.is_loopback
        if source.version == 4:
            known |= source.is_reserved or source in IPv4Network("0.0.0.0/8")
        verdict = oracle_for(WORLD, None).predict(ping(mode_vip("dscp", family), src=source), {}).verdict
        assert verdict == ("bad_source" if known else "echo_answered"), text


@pytest.mark.parametrize("family", [4, 6])
def test_dscp(family: int) -> None:
    vip, real = mode_vip("dscp", family), WORLD.service(f"dscp-for-{family}").reals[0]
    frame = udp(vip, 53, payload=DATA, sport=PORT, tos=0x0E)
    header = ip(real.address, CLIENT if family == 4 else CLIENT6, ttl=63, tos=DSCP << 2 | 2)
    expected = link_to(real.mac) / header / UDP(sport=PORT, dport=53) / Raw(DATA)
    assert sent_to(vip, frame) == bytes(expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("wanted", "tags"),
    [
        ("pop", []),
        ("vlan", [Dot1Q(vlan=200, prio=5)]),
        ("qinq", [Dot1AD(vlan=300, prio=5), Dot1Q(vlan=200, prio=5)]),
        ("keep", [Dot1Q(vlan=77, prio=5)]),
    ],
)
def test_tags(wanted: str, tags: list[Any], family: int) -> None:
    vip, real = tags_vip(wanted, "l2", family), WORLD.service(f"{wanted}-l2-for-{family}").reals[0]
    frame = tcp(vip, link=ether() / Dot1Q(vlan=77, prio=5))
    expected = link_to(real.mac)
    for tag in tags:
        expected = expected / tag.copy()
    segment = TCP(sport=40000, dport=80, flags="S", seq=1000, ack=2000)
    assert sent_to(vip, frame) == bytes(expected / ip(vip, ttl=63) / segment)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_too_big(way: str, family: int) -> None:
    vip = mode_vip(way, family)
    frame = tcp(vip, flags="A", payload=b"\x5a" * 1480, sport=PORT)
    got = oracle_for(WORLD, None).predict(frame, {})
    back = Ether(dst=ROUTER_MAC, src=OUR_MAC[Side.NEAR])
    if family == 4:
        header = IP(src=str(vip), dst=str(CLIENT), id=0, flags="DF", ttl=64)
        expected = back / header / ICMP(type=3, code=4, nexthopmtu=room(way)) / Raw(frame[14 : 14 + 548])
    else:
        header = IPv6(src=str(vip), dst=str(CLIENT6), hlim=64)
        expected = back / header / ICMPv6PacketTooBig(mtu=room(way)) / Raw(frame[14 : 14 + 1232])
    assert (got.verdict, got.frame) == ("too_big_answered", bytes(expected))


@pytest.mark.parametrize("family", [4, 6])
def test_echo(family: int) -> None:
    vip = mode_vip("dscp", family)
    got = oracle_for(WORLD, None).predict(ping(vip, ttl=9), {})
    reply = Ether(ping(vip, ttl=64))
    reply.src, reply.dst = OUR_MAC[Side.NEAR], ROUTER_MAC
    header = reply.payload
    header.src, header.dst = header.dst, header.src
    header.payload.type = 0 if family == 4 else 129
    assert (got.verdict, got.frame) == ("echo_answered", rebuilt(bytes(reply)))
