"""The oracle's reader: what a frame says, by the RFCs, in plain Python and fast.

Written apart from xdp/parse.h. Knows nothing of services or reals. Sources: IEEE 802.1Q, RFC 791, 8200, 9293,
768, 792, 4443.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from ipaddress import ip_address, ip_network

ETH = 14
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_OPTIONS = (_HOP_BY_HOP, _ROUTING, _DESTINATION)
_TAGS = (0x8100, 0x88A8)
_MAX_TAGS = 2
_MAX_EXTENSIONS = 6
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_ICMP4_ERRORS = (3, 11, 12)
_ICMP6_ERRORS = (1, 2, 3, 4)


class Kind(Enum):
    FLOW = auto()
    LATER_FRAGMENT = auto()
    ICMP = auto()
    OTHER = auto()


@dataclass(slots=True)
class Packet:
    """`l3` and `l4` are offsets in the frame, `total` the bytes of the IP packet."""

    l3: int = 0
    l4: int = 0
    tags: list[bytes] = field(default_factory=list)  # type and control information, four bytes each
    version: int = 0
    source: bytes = b""
    destination: bytes = b""
    total: int = 0
    protocol: int = 0
    ttl: int = 0
    tos: int = 0
    identification: int = 0
    kind: Kind = Kind.FLOW
    first_fragment: bool = False
    sport: int = 0
    dport: int = 0
    starts: bool = False
    ends: bool = False

    @property
    def end(self) -> int:
        return self.l3 + self.total


@dataclass(frozen=True, slots=True)
class Quote:
    """The packet that an ICMP error quotes: it went from the VIP to the client."""

    vip: bytes
    client: bytes
    vip_port: int
    client_port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class QuotedTunnel:
    """A packet in a tunnel that a "too big" quotes. `destination`: of the packet inside, empty where the
    quotation ends before it.
    """

    protocol: int
    destination: bytes


def number(frame: bytes, at: int, size: int = 2) -> int:
    """Big endian, as all of IP."""
    return int.from_bytes(frame[at : at + size], "big")


def read(frame: bytes, *, extensions: bool = True) -> tuple[Packet, str | None]:
    """The packet, and the verdict where something is wrong with it; its `l3` is 0 where it isn't IP.

    `extensions`: whether extension headers are followed, or are protocols as any other.
    """
    p = Packet()
    at, ethertype = ETH, number(frame, 12)
    while ethertype in _TAGS and len(p.tags) < _MAX_TAGS:
        if len(frame) < at + 4:
            return p, "unreadable"
        p.tags.append(ethertype.to_bytes(2, "big") + frame[at : at + 2])
        ethertype = number(frame, at + 2)
        at += 4
    if ethertype == 0x0800:
        return p, _read_ipv4(p, frame, at)
    if ethertype == 0x86DD:
        return p, _read_ipv6(p, frame, at, extensions)
    return p, "too_many_tags" if ethertype in _TAGS else "not_ip"


def _read_ipv4(p: Packet, frame: bytes, at: int) -> str | None:
    if len(frame) < at + 20:
        return "unreadable"
    p.l3, p.version = at, 4
    p.source, p.destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    p.tos, p.total, p.identification = frame[at + 1], number(frame, at + 2), number(frame, at + 4)
    p.ttl, p.protocol = frame[at + 8], frame[at + 9]
    header = (frame[at] & 15) * 4
    if frame[at] >> 4 != 4 or not 20 <= header <= p.total <= len(frame) - at:
        return "bad_ip_header"
    fragment = number(frame, at + 6)
    return _read_content(p, frame, at + header, fragment & 0x1FFF, bool(fragment & 0x2000))


def _read_ipv6(p: Packet, frame: bytes, at: int, extensions: bool) -> str | None:
    if len(frame) < at + 40:
        return "unreadable"
    p.l3, p.version = at, 6
    p.source, p.destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    p.tos, p.total = number(frame, at) >> 4 & 0xFF, number(frame, at + 4) + 40
    p.protocol, p.ttl = frame[at + 6], frame[at + 7]
    if frame[at] >> 4 != 6 or p.total > min(0xFFFF, len(frame) - at):
        return "bad_ip_header"
    behind = _skip_extensions(p, frame, at + 40, p.end) if extensions else (at + 40, 0, False)
    if behind is None:
        return "bad_extension"
    return _read_content(p, frame, *behind)


def _skip_extensions(p: Packet, frame: bytes, at: int, end: int) -> tuple[int, int, bool] | None:
    """Where the extension headers end, and the last fragment header's offset and "more"; None: they don't."""
    offset, more = 0, False
    for _ in range(_MAX_EXTENSIONS):
        if p.protocol not in _OPTIONS and p.protocol != _FRAGMENT:
            break
        if at + 8 > end:
            return None
        if p.protocol == _FRAGMENT:
            word = number(frame, at + 2)
            offset, more = word >> 3, more or bool(word & 1 and not word >> 3)
            p.identification, p.protocol = number(frame, at + 4, 4), frame[at]
            at += 8
            if offset:
                break  # what follows is the middle of something
        elif p.protocol == _ROUTING and frame[at + 3]:
            return None  # not at its destination yet
        else:
            p.protocol = frame[at]
            at += (frame[at + 1] + 1) * 8
    if at > end or (not offset and (p.protocol in _OPTIONS or p.protocol == _FRAGMENT)):
        return None
    return at, offset, more


def _read_content(p: Packet, frame: bytes, at: int, offset: int, more: bool) -> str | None:
    p.first_fragment = more and not offset
    if offset:
        p.kind = Kind.LATER_FRAGMENT
        return None
    p.l4, room = at, p.end - at
    if p.protocol == TCP:
        header = (frame[at + 12] >> 4) * 4 if room >= 20 else 0
        if not 20 <= header <= room:
            return "bad_l4_header"
        flags = frame[at + 13]
        p.starts, p.ends = flags & (_SYN | _ACK) == _SYN, bool(flags & (_FIN | _RST))
    elif p.protocol == UDP:
        length = number(frame, at + 4) if room >= 8 else 0
        if length < 8 or (length > room and not p.first_fragment):
            return "bad_l4_header"
    elif p.protocol == (ICMP if p.version == 4 else ICMP6):
        p.kind = Kind.ICMP
        return None if room >= 8 else "bad_l4_header"
    else:
        p.kind = Kind.OTHER
        return "unsupported_protocol"
    p.sport, p.dport = number(frame, at), number(frame, at + 2)
    return None


_NO_HOST = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "ff00::/8")
)


@cache
def _is_a_hosts(packed: bytes) -> bool:
    address = ip_address(packed)
    return not any(address in network for network in _NO_HOST)


def is_from_a_host(p: Packet) -> bool:
    """Whether the source may be answered at all (RFC 1122 3.2.2, RFC 4443 2.4 (e), RFC 4291 2.5.2, 2.5.3)."""
    return _is_a_hosts(p.source)


def is_echo_request(p: Packet, frame: bytes) -> bool:
    return frame[p.l4] == (8 if p.version == 4 else 128) and not frame[p.l4 + 1]


def is_error(p: Packet, frame: bytes) -> bool:
    return frame[p.l4] in (_ICMP4_ERRORS if p.version == 4 else _ICMP6_ERRORS)


def read_quote(p: Packet, frame: bytes) -> Quote | None:
    """What an ICMP error is about, where that is TCP or UDP from the address the error was sent to."""
    at, inner = p.l4 + 8, Packet()
    if p.version == 4:
        if p.end < at + 20 or frame[at] >> 4 != 4 or frame[at] & 15 < 5 or number(frame, at + 6) & 0x1FFF:
            return None
        source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        inner.protocol = frame[at + 9]
        at += (frame[at] & 15) * 4
    else:
        if p.end < at + 40 or frame[at] >> 4 != 6:
            return None
        source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        inner.protocol = frame[at + 6]
        behind = _skip_extensions(inner, frame, at + 40, p.end)
        if behind is None or behind[1]:
            return None
        at = behind[0]
    if p.end < at + 4 or source != p.destination or inner.protocol not in (TCP, UDP):
        return None
    return Quote(source, destination, number(frame, at), number(frame, at + 2), inner.protocol)


_IPIP, _IPV6_INSIDE, _GRE = 4, 41, 47


def read_quoted_tunnel(p: Packet, frame: bytes) -> QuotedTunnel | None:
    """What a "too big" is about, where that is a tunnel's from the address that it was sent to."""
    quoted = frame[p.l4 + 8 : p.end]
    told = frame[p.l4 : p.l4 + 2] == b"\x03\x04" if p.version == 4 else frame[p.l4] == 2
    header = 20 if p.version == 4 else 40
    if not told or len(quoted) < header:
        return None
    if quoted[0] != 0x45 if p.version == 4 else quoted[0] >> 4 != 6:
        return None
    source = quoted[12:16] if p.version == 4 else quoted[8:24]
    protocol = quoted[9] if p.version == 4 else quoted[6]
    behind = quoted[header:]
    if source != p.destination or protocol not in (_IPIP, _IPV6_INSIDE, _GRE, UDP):
        return None
    if protocol == _GRE:
        behind = behind[4:]
    elif protocol == UDP:
        if len(behind) < 9:
            return None
        behind = behind[8:] if behind[8] >> 4 else behind[12:]  # of FOU and of GUE
    inside = behind[0] >> 4 if behind else 0
    if len(behind) < (20 if inside == 4 else 40):
        return QuotedTunnel(protocol, b"")
    if inside not in (4, 6):
        return None
    return QuotedTunnel(protocol, behind[16:20] if inside == 4 else behind[24:40])
