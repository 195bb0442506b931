"""What should happen to a frame, worked out in plain Python from the documents: an oracle for the C program.

Written apart from the C and sharing nothing with it but the pure modules for the flow's hash and the Maglev
table, which have tests of their own, and the action that verdicts.h gives each verdict.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.packets.frames import ip_checksum
from tests.packets.harness import KEY, Outcome, TcAction, XdpAction
from tests.packets.world import OUR_MAC, RealSpec, ServiceSpec, Side, World
from vc5py.core import maglev
from vc5py.core.flowhash import flow_hash4, table_slot
from vc5py.core.identity import real_identity
from vc5py.dataplane.abi import Action, verdicts
from vc5py.model import Protocol

_ETH, _IP = 14, 20
_IPV4 = 0x0800
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
_MIN_L4 = {Protocol.TCP: 20, Protocol.UDP: 8}
ACTIONS = {verdict.name: verdict.action for verdict in verdicts()}


@dataclass(frozen=True, slots=True)
class Tuple5:
    """A flow, as the client names it."""

    source: IPv4Address
    vip: IPv4Address
    sport: int
    dport: int
    protocol: Protocol

    @property
    def hash(self) -> int:
        return flow_hash4(KEY, self.source, self.vip, self.sport, self.dport, self.protocol.number)


@dataclass(frozen=True, slots=True)
class Known:
    """What the flow table says of the frame's flow: a real of a service."""

    service: str
    real: IPv4Address


class _End(Exception):  # noqa: N818  not an error: a verdict
    """The frame's way ends here."""


def read_tuple(frame: bytes) -> Tuple5:
    """The flow of a well-formed TCP or UDP frame."""
    ihl = (frame[_ETH] & 15) * 4
    source, vip = (IPv4Address(frame[_ETH + at : _ETH + at + 4]) for at in (12, 16))
    sport, dport = struct.unpack_from("!HH", frame, _ETH + ihl)
    return Tuple5(source, vip, sport, dport, _PROTOCOLS[frame[_ETH + 9]])


def _check_l4(segment: bytes, protocol: Protocol) -> None:
    """`segment` is what the IP header says is its payload."""
    if len(segment) < _MIN_L4[protocol]:
        raise _End("bad_l4_header")
    if protocol is Protocol.TCP:
        header = (segment[12] >> 4) * 4
        if not 20 <= header <= len(segment):
            raise _End("bad_l4_header")
    elif not 8 <= int.from_bytes(segment[4:6], "big") <= len(segment):
        raise _End("bad_l4_header")


def _read(world: World, frame: bytes) -> Tuple5:
    if int.from_bytes(frame[12:14], "big") != _IPV4:
        raise _End("not_ip")
    packet = frame[_ETH:]
    if len(packet) < _IP:
        raise _End("unreadable")
    if IPv4Address(packet[16:20]) not in {service.vip for service in world.services}:
        raise _End("not_vip")
    version, ihl = packet[0] >> 4, (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    if version != 4 or not _IP <= ihl <= total <= len(packet):
        raise _End("bad_ip_header")
    if int.from_bytes(packet[6:8], "big") & 0x3FFF:
        raise _End("fragment")
    if packet[9] not in _PROTOCOLS:
        raise _End("unsupported_protocol")
    _check_l4(packet[ihl:total], _PROTOCOLS[packet[9]])
    return read_tuple(frame)


def _find_service(world: World, flow: Tuple5) -> ServiceSpec:
    for service in world.services:
        if service.vip == flow.vip and (flow.dport, flow.protocol) in service.ports:
            return service
    raise _End("no_service")


def maglev_choice(service: ServiceSpec, flow_hash: int) -> RealSpec:
    """The real of the slot that the flow falls into."""
    takers = [real for real in service.reals if real.up and real.weight]
    if not takers:
        raise _End("no_backend")
    size = maglev.table_size(len(service.reals))  # those that take nothing count too: sizes rarely change
    table = maglev.build([real_identity(r.address) for r in takers], [r.weight for r in takers], size)
    return takers[int(table[table_slot(flow_hash, size)])]


def _choose(
    service: ServiceSpec, flow: Tuple5, known: Known | None, room: bool, ends: bool
) -> tuple[str, RealSpec]:
    if known is not None and known.service == service.name and service.real(known.real).up:
        return "forwarded_flow", service.real(known.real)
    choice = maglev_choice(service, flow.hash)
    if known is not None:
        return "forwarded_rehashed", choice
    if ends:
        return "forwarded_ending", choice
    return ("forwarded_new" if room else "forwarded_unrecorded"), choice


def _ends(frame: bytes, flow: Tuple5) -> bool:
    if flow.protocol is not Protocol.TCP:
        return False
    return bool(frame[_ETH + (frame[_ETH] & 15) * 4 + 13] & 0b101)  # FIN, RST


def less_one_ttl(packet: bytes) -> bytes:
    """RFC 1812 5.3.1: a checksum that was right is right afterwards, and a wrong one stays wrong."""
    ihl = (packet[0] & 15) * 4
    header = packet[:8] + bytes([packet[8] - 1]) + packet[9:ihl]
    old = packet[10:12]
    if ip_checksum(packet[:10] + b"\0\0" + packet[12:ihl]) == old:
        new = ip_checksum(header[:10] + b"\0\0" + header[12:])
    else:  # RFC 1624, eqn. 3: HC' = ~(~HC + ~m + m'), where m and m' differ by 0x0100
        total = (~int.from_bytes(old, "big") & 0xFFFF) + 0xFEFF
        total = (total & 0xFFFF) + (total >> 16)
        new = (~total & 0xFFFF).to_bytes(2, "big")
    return header[:10] + new + header[12:] + packet[ihl:]


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _decide(world: World, frame: bytes, side: Side, known: Known | None, room: bool) -> tuple[str, RealSpec]:
    flow = _read(world, frame)
    service = _find_service(world, flow)
    if frame[:6] != _mac(OUR_MAC[side]):
        raise _End("not_our_mac")
    if frame[_ETH + 8] <= 1:
        raise _End("ttl_expired")
    verdict, real = _choose(service, flow, known, room, _ends(frame, flow))
    if real.mac is None:
        raise _End("no_neighbour")
    if frame[6:12] == _mac(real.mac):
        raise _End("looped")
    return verdict, real


def expect(
    world: World, frame: bytes, *, side: Side = Side.NEAR, known: Known | None = None, room: bool = True
) -> Outcome:
    """What the XDP program should do with a frame that comes in on `side`.

    `known`: what the flow table says of its flow; `room`: whether the table would take another flow.
    """
    try:
        verdict, real = _decide(world, frame, side, known, room)
    except _End as end:
        verdict = str(end)
        dropped = ACTIONS[verdict] is Action.DROP
        return Outcome(verdict, XdpAction.DROP if dropped else XdpAction.PASS, frame)
    assert real.mac is not None and ACTIONS[verdict] is Action.FORWARD
    sent = _mac(real.mac) + _mac(OUR_MAC[real.side]) + frame[12:_ETH] + less_one_ttl(frame[_ETH:])
    return Outcome(verdict, XdpAction.TX if real.side is side else XdpAction.REDIRECT, sent)


def expect_probe(frame: bytes, real: RealSpec | None) -> Outcome:
    """What the TC program should do with our own frame to a real; None: the mark names no backend."""
    if real is None or real.mac is None:
        return Outcome("probe_no_backend", TcAction.SHOT, frame)
    sent = _mac(real.mac) + _mac(OUR_MAC[real.side]) + frame[12:]
    return Outcome("probe", TcAction.OK if real.side is Side.NEAR else TcAction.REDIRECT, sent)
