"""Frames to feed in, as bytes, made with scapy: from a client, by the router, to a VIP."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.packets.world import CLIENT, CLIENT6, OUR_MAC, ROUTER_MAC, WEB_VIP, Side
from vc5py.model import IPAddress

IP_AT = 14  # where the IP header starts in an untagged frame
MIN_FRAME = 14  # shorter ones the kernel does not run


def ether(*, dst: str = OUR_MAC[Side.NEAR], src: str = ROUTER_MAC, **fields: Any) -> Any:
    return Ether(dst=dst, src=src, **fields)


def ip(vip: IPAddress = WEB_VIP, src: IPAddress | None = None, **fields: Any) -> Any:
    """An IP header of the VIP's version; `ttl` and `tos` mean the same in both."""
    if vip.version == 4:
        return IP(src=str(src or CLIENT), dst=str(vip), **fields)
    for name, ours in (("hlim", "ttl"), ("tc", "tos")):
        if ours in fields:
            fields[name] = fields.pop(ours)
    return IPv6(src=str(src or CLIENT6), dst=str(vip), **fields)


def tcp(
    vip: IPAddress = WEB_VIP,
    dport: int = 80,
    flags: str = "S",
    *,
    sport: int = 40000,
    src: IPAddress | None = None,
    payload: bytes = b"",
    link: Any = None,
    options: list[Any] | None = None,
    extensions: Any = None,
    **ip_fields: Any,
) -> bytes:
    """A TCP segment; `link` and `ip_fields` change the headers around it, `options` are TCP's."""
    segment = TCP(sport=sport, dport=dport, flags=flags, seq=1000, ack=2000, options=options or [])
    header = ip(vip, src, **ip_fields)
    return bytes((link or ether()) / (header / extensions if extensions else header) / segment / Raw(payload))


def udp(
    vip: IPAddress = WEB_VIP,
    dport: int = 443,
    *,
    sport: int = 40000,
    src: IPAddress | None = None,
    payload: bytes = b"hello",
    link: Any = None,
    length: int | None = None,
    extensions: Any = None,
    **ip_fields: Any,
) -> bytes:
    """A UDP datagram; `length` is what its header says, where that is a lie."""
    datagram = UDP(sport=sport, dport=dport, len=length)
    header = ip(vip, src, **ip_fields)
    return bytes(
        (link or ether()) / (header / extensions if extensions else header) / datagram / Raw(payload)
    )


def ping(
    vip: IPAddress = WEB_VIP, *, link: Any = None, payload: bytes = b"abcdefgh", **ip_fields: Any
) -> bytes:
    header = (link or ether()) / ip(vip, **ip_fields)
    if vip.version == 4:
        return bytes(header / ICMP(id=7, seq=1) / Raw(payload))
    return bytes(header / ICMPv6EchoRequest(id=7, seq=1, data=payload))


def other_protocol(number: int, vip: IPAddress = WEB_VIP) -> bytes:
    return bytes(ether() / ip(vip, proto=number) / Raw(bytes(32)))


def arp_request(vip: IPAddress = WEB_VIP) -> bytes:
    return bytes(ether(dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, pdst=str(vip), hwsrc=ROUTER_MAC))


def tags(*ids: int, outer_ad: bool = True) -> Any:
    """An Ethernet header with tags, the outermost first: 802.1ad around 802.1Q; priority 5."""
    link = ether()
    for n, vlan in enumerate(ids):
        kind = Dot1AD if outer_ad and n < len(ids) - 1 else Dot1Q
        link = link / kind(vlan=vlan, prio=5)
    return link


def vlan_tagged(frame: bytes, vlan: int = 100) -> bytes:
    """The same frame with an 802.1Q tag."""
    return frame[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + frame[12:]


def padded(frame: bytes, size: int = 60, fill: bytes = b"\0") -> bytes:
    """Filled up behind the packet, as Ethernet does to 60 bytes."""
    return frame + fill * (size - len(frame))


def patched(frame: bytes, offset: int, data: bytes) -> bytes:
    """The frame with some bytes overwritten."""
    return frame[:offset] + data + frame[offset + len(data) :]


def lying(frame: bytes, offset: int, data: bytes) -> bytes:
    """`patched`, with the IP header's checksum made right again: only one thing is wrong at a time."""
    changed = patched(frame, offset, data)
    ihl = max(20, (changed[IP_AT] & 15) * 4)
    header = changed[IP_AT : IP_AT + ihl]
    if len(header) < ihl:
        return changed
    return patched(changed, IP_AT + 10, ip_checksum(patched(header, 10, b"\0\0")))


def ip_checksum(header: bytes) -> bytes:
    """RFC 1071, over a header whose checksum field is zero."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def random_clients(seed: int) -> Iterator[tuple[IPv4Address, int]]:
    """Endless (address, source port), no two alike, the same for the same seed."""
    generator = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    while True:
        client = (generator.randrange(0x0B000000, 0x7F000000), generator.randrange(1024, 65536))
        if client not in seen:
            seen.add(client)
            yield IPv4Address(client[0]), client[1]


def from_client(frame: bytes, source: IPAddress, sport: int) -> bytes:
    """A frame with another source, quickly (checksums are not kept right; nothing in the way reads them).

    In an IPv6 frame the last four bytes of the address change.
    """
    address, port = (IP_AT + 12, IP_AT + 20) if frame[IP_AT] >> 4 == 4 else (IP_AT + 20, IP_AT + 40)
    return patched(patched(frame, address, source.packed), port, sport.to_bytes(2, "big"))
