"""The oracle's writer: the whole frame that should leave, every outer checksum computed from scratch.

Written apart from xdp/{rewrite,tunnel,icmp}.h; knows nothing of how a real is chosen. test_oracle.py
compares it with scapy. Sources: RFC 1071, 1624, 2003, 2473, 2784, 4213, 8200, 792, 1191, 4443, the GUE draft.
"""

from __future__ import annotations

from tests.packets.oracle_read import ICMP6, TCP, UDP, Kind, Packet, number
from tests.packets.world import OUR_MAC, SOURCES, RealSpec
from vc5py.model import ForwardMode

HOPS = 64
QUOTED = {4: 548, 6: 1232}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_AS_PROTOCOL = {4: 4, 6: 41}
_HEADER = {4: 20, 6: 40}
_BEHIND = {
    ForwardMode.IPIP: 0,
    ForwardMode.GRE: 4,
    ForwardMode.FOU: 8,
    ForwardMode.GUE: 12,
}


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


OURS = {side: mac(text) for side, text in OUR_MAC.items()}


def folded(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), 0 only where all are 0."""
    value = int.from_bytes(data + b"\0" * (len(data) & 1), "big")
    return (value - 1) % 0xFFFF + 1 if value else 0


def checksum(data: bytes) -> bytes:
    return (0xFFFF ^ folded(data)).to_bytes(2, "big")


def updated(check: int, old: bytes, new: bytes) -> int:
    """RFC 1624, eqn. 3: a right checksum is right afterwards, and a wrong one stays wrong."""
    total = (0xFFFF ^ check) + (0xFFFF ^ folded(old)) + folded(new)
    return 0xFFFF ^ ((total - 1) % 0xFFFF + 1 if total else 0)


def tunnel_bytes(real: RealSpec) -> int:
    return _HEADER[real.address.version] + _BEHIND[real.forwarding.mode]


def _ipv4(packet: bytes, start: int, check: bytes | None = None) -> bytes:
    header = packet[:start]
    fresh = check or checksum(header[:10] + b"\0\0" + header[12:])
    return header[:10] + fresh + header[12:] + packet[start:]


def less_one_hop(packet: bytes) -> bytes:
    """The packet after one more router (RFC 1812 5.3.1, RFC 8200 3)."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    old, new = bytes([packet[8], 0]), bytes([packet[8] - 1, 0])
    check = updated(number(packet, 10), old, new).to_bytes(2, "big")
    return packet[:8] + new[:1] + packet[9:10] + check + packet[12:]


def tags_towards(real: RealSpec, p: Packet) -> list[bytes]:
    """The priority of the innermost tag stays."""
    if real.vlan is None:
        return p.tags
    if not real.vlan:
        return []
    priority = number(p.tags[-1], 2) & 0xF000 if p.tags else 0
    inner = b"\x81\x00" + (priority | real.vlan).to_bytes(2, "big")
    if not real.svlan:
        return [inner]
    return [b"\x88\xa8" + (priority | real.svlan).to_bytes(2, "big"), inner]


def forwarded(frame: bytes, p: Packet, real: RealSpec, source: bytes, flow_hash: int) -> bytes:
    """The frame as it leaves for the real, from `source`."""
    return _sent(frame, p, real, source, flow_hash, less_one_hop(frame[p.l3 : p.end]))


def probe(frame: bytes, p: Packet, real: RealSpec, flow_hash: int) -> bytes:
    """The same for a frame of our own, which has made no hop yet."""
    return _sent(frame, p, real, OURS[real.side], flow_hash, frame[p.l3 : p.end])


def _sent(frame: bytes, p: Packet, real: RealSpec, source: bytes, flow_hash: int, packet: bytes) -> bytes:
    assert real.mac is not None
    padding, version = frame[p.end :], p.version
    mode = real.forwarding.mode
    if mode is ForwardMode.DSCP:
        packet = _marked(packet, p, real)
    elif mode.is_tunnel:
        packet, version = _encapsulated(packet, p, real, flow_hash), real.address.version
    link = mac(real.mac) + source + b"".join(tags_towards(real, p)) + _ETHERTYPE[version]
    return link + packet + padding


def _marked(packet: bytes, p: Packet, real: RealSpec) -> bytes:
    """L3 DSR: another destination and another DSCP; ECN stays."""
    tos, to = real.forwarding.dscp << 2 | p.tos & 3, real.address.packed
    if p.kind is not Kind.LATER_FRAGMENT:
        packet = _l4_updated(packet, p, to)
    if p.version == 4:
        changed = packet[:1] + bytes([tos]) + packet[2:16] + to + packet[20:]
        check = updated(number(packet, 10), packet[:2] + packet[16:20], changed[:2] + to)
        return _ipv4(changed, 20, check.to_bytes(2, "big"))
    word = 6 << 12 | tos << 4 | packet[1] & 15
    return word.to_bytes(2, "big") + packet[2:24] + to + packet[40:]


def _l4_updated(packet: bytes, p: Packet, to: bytes) -> bytes:
    offset = {TCP: 16, UDP: 6, ICMP6: 2 if p.version == 6 else None}.get(p.protocol)
    if offset is None:
        return packet
    at = p.l4 - p.l3 + offset
    check = number(packet, at)
    if p.protocol == UDP and not check:
        return packet
    check = updated(check, p.destination, to)
    if p.protocol == UDP and not check:
        check = 0xFFFF
    return packet[:at] + check.to_bytes(2, "big") + packet[at + 2 :]


def _encapsulated(packet: bytes, p: Packet, real: RealSpec, flow_hash: int) -> bytes:
    mode, version = real.forwarding.mode, real.address.version
    behind, protocol = packet, _AS_PROTOCOL[p.version]
    if mode is ForwardMode.GRE:
        behind, protocol = b"\0\0" + _ETHERTYPE[p.version] + packet, 47
    elif mode is ForwardMode.GUE:
        behind = bytes([0, protocol, 0, 0]) + packet
    source, destination = SOURCES[version].packed, real.address.packed
    if mode in (ForwardMode.FOU, ForwardMode.GUE):
        ports = (0xC000 | flow_hash >> 32 & 0x3FFF).to_bytes(2, "big") + real.forwarding.port.to_bytes(
            2, "big"
        )
        length = (8 + len(behind)).to_bytes(2, "big")
        check = b"\0\0"
        if version == 6 and _sum_is_known(packet, p):
            # A client's packet with a wrong checksum gets an outer one that is as wrong.
            pseudo = source + destination + length + b"\0\x11"
            check = _inner_believed(pseudo + ports + length + behind[: len(behind) - len(packet)], packet, p)
        behind, protocol = ports + length + check + behind, 17
    if version == 4:
        total = (20 + len(behind)).to_bytes(2, "big")
        header = bytes([0x45, p.tos]) + total + b"\0\0\x40\0" + bytes([HOPS, protocol, 0, 0])
        return _ipv4(header + source + destination + behind, 20)
    label = 6 << 28 | p.tos << 20 | flow_hash >> 32 & 0xFFFFF
    header = label.to_bytes(4, "big") + len(behind).to_bytes(2, "big") + bytes([protocol, HOPS])
    return header + source + destination + behind


def _sum_is_known(packet: bytes, p: Packet) -> bool:
    """Whether an outer UDP checksum is computed at all: where the inner packet has one that covers it all."""
    if p.kind is not Kind.FLOW or p.first_fragment:
        return False
    if p.version == 6 and p.l4 - p.l3 != 40:
        return False
    at = p.l4 - p.l3
    return p.protocol == TCP or (number(packet, at + 6) != 0 and number(packet, at + 4) == p.total - at)


def _inner_believed(before: bytes, packet: bytes, p: Packet) -> bytes:
    """The outer checksum for an inner packet whose own checksums are as they should be."""
    at = p.l4 - p.l3
    field = at + (16 if p.protocol == TCP else 6)
    blank = packet[:field] + b"\0\0" + packet[field + 2 :]
    pseudo = p.source + p.destination + (p.total - at).to_bytes(4, "big") + bytes([0, 0, 0, p.protocol])
    blank = blank[:field] + checksum(pseudo + blank[at:]) + blank[field + 2 :]
    if p.version == 4:
        blank = _ipv4(blank, at)
    found = checksum(before + blank)
    return found if found != b"\0\0" else b"\xff\xff"


def echo_reply(frame: bytes, p: Packet) -> bytes:
    reply = 0 if p.version == 4 else 129
    check = updated(number(frame, p.l4 + 2), frame[p.l4 : p.l4 + 1] + b"\0", bytes([reply, 0]))
    icmp = bytes([reply, 0]) + check.to_bytes(2, "big") + frame[p.l4 + 4 :]
    header = frame[p.l3 : p.l4]
    if p.version == 4:
        check = updated(number(header, 10), bytes([p.ttl, 0]), bytes([HOPS, 0]))
        header = (
            header[:8]
            + bytes([HOPS, header[9]])
            + check.to_bytes(2, "big")
            + p.destination
            + p.source
            + header[20:]
        )
    else:
        header = header[:7] + bytes([HOPS]) + p.destination + p.source + header[40:]
    return frame[6:12] + frame[:6] + frame[12 : p.l3] + header + icmp


def too_big(frame: bytes, p: Packet, mtu: int) -> bytes | None:
    """What tells the client the largest packet that fits; None for a packet shorter than what is quoted."""
    quote = frame[p.l3 : p.l3 + QUOTED[p.version]]
    if p.total < len(quote) or len(quote) < QUOTED[p.version]:
        return None
    if p.version == 4:
        icmp = b"\x03\x04\0\0\0\0" + mtu.to_bytes(2, "big") + quote
        icmp = icmp[:2] + checksum(icmp) + icmp[4:]
        header = b"\x45\0" + (20 + len(icmp)).to_bytes(2, "big") + b"\0\0\x40\0" + bytes([HOPS, 1, 0, 0])
        packet = _ipv4(header + p.destination + p.source + icmp, 20)
    else:
        icmp = b"\x02\0\0\0" + mtu.to_bytes(4, "big") + quote
        length = len(icmp).to_bytes(4, "big")
        check = checksum(p.destination + p.source + length + b"\0\0\0\x3a" + icmp)
        header = b"\x60\0\0\0" + length[2:] + bytes([ICMP6, HOPS])
        packet = header + p.destination + p.source + icmp[:2] + check + icmp[4:]
    return frame[6:12] + frame[:6] + frame[12 : p.l3] + packet
