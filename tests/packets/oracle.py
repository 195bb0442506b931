"""What should happen to a frame, worked out in plain Python from the documents: an oracle for the C program.

Written apart from the C and sharing nothing with it but the pure modules for the flow's hash and the Maglev
table, which have tests of their own, and the action that verdicts.h gives each verdict. Fast enough to be
asked a million times. Time stands still: it is always tick 0, and every flow was seen in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from tests.packets import oracle_read, oracle_send
from tests.packets.harness import ACTIONS, KEY, Outcome, TcAction, XdpAction
from tests.packets.oracle_read import UDP, Kind, Packet, Quote, read
from tests.packets.oracle_send import OURS, mac
from tests.packets.world import BOND_MAC, RealSpec, ServiceSpec, Side, World
from vc5py.core import maglev
from vc5py.core.flowhash import client_hash, flow_hash, fragment_hash, other_slot, table_slot
from vc5py.core.identity import real_identity
from vc5py.dataplane.abi import Action, FlowState
from vc5py.model import ForwardMode, IPAddress, Protocol, Scheduling, Unknown

SAMPLE = 64  # a flow is looked up in one tick of so many, whatever its slot says
FRAGMENT_TICKS = 23  # 30 s, of 128 hundredths each: afterwards an identification may be another packet's
# After which silence a SYN is another connection's: 120, 10 and 3,600 s, and for datagrams 300 s, but never
# before UDP_OVER_TICKS.
KEPT_TICKS = {
    FlowState.UNPROVEN: 94,
    FlowState.PROVING: 94,
    FlowState.CLOSING: 8,
    FlowState.FRAGMENT: FRAGMENT_TICKS,
    FlowState.ESTABLISHED: 2812,
    FlowState.STREAM: 234,
}
UDP_OVER_TICKS = 768
HALF_CLOSED_TICKS = 2  # a client that still sends so long after its FIN has closed only its own direction

# What can't be parsed never gets as far as being marked: that check is there for the verifier.
UNREACHABLE = frozenset({"mode_unsupported"})

__all__ = [
    "ACTIONS",
    "UNREACHABLE",
    "Flows",
    "Known",
    "Oracle",
    "expect_probe",
    "maglev_choice",
    "read_tuple",
]


class Tuple5(NamedTuple):
    """A flow, as the client names it."""

    source: IPAddress
    vip: IPAddress
    sport: int
    dport: int
    protocol: Protocol

    @property
    def hash(self) -> int:
        return flow_hash(KEY, self.source, self.vip, self.sport, self.dport, self.protocol.number)

    @property
    def sampled(self) -> bool:
        """In tick 0."""
        return not (self.hash >> 56) % SAMPLE


@dataclass(frozen=True, slots=True)
class Known:
    """What the flow table says of a flow: a real of a service. `age`: ticks since it was last seen."""

    service: str
    real: IPAddress
    state: FlowState = FlowState.UNPROVEN
    age: int = 0

    @property
    def told(self) -> tuple[str, IPAddress, FlowState]:
        """What of it is in the kernel's table too, whatever the time there."""
        return self.service, self.real, self.state


Flows = dict[int, Known]  # by hash


def address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def read_tuple(frame: bytes) -> Tuple5:
    """The flow of a well-formed TCP or UDP frame, or of an ICMP error about one."""
    p, problem = read(frame)
    assert problem is None
    if p.kind is Kind.ICMP:
        q = oracle_read.read_quote(p, frame)
        assert q is not None
        return _tuple_of(q)
    assert p.kind is Kind.FLOW
    return Tuple5(address(p.source), address(p.destination), p.sport, p.dport, _PROTOCOLS[p.protocol])


def name_of(frame: bytes) -> int:
    """What the flow table calls that which the frame is of: a flow, or for a later fragment its packet."""
    return fragment_name(frame) if read(frame)[0].kind is Kind.LATER_FRAGMENT else read_tuple(frame).hash


def fragment_name(frame: bytes) -> int:
    """The name that all fragments of the frame's packet share."""
    return _fragment_name(read(frame)[0])


def _tuple_of(q: Quote) -> Tuple5:
    return Tuple5(address(q.client), address(q.vip), q.client_port, q.vip_port, _PROTOCOLS[q.protocol])


def _fragment_name(p: Packet) -> int:
    return fragment_hash(KEY, address(p.source), address(p.destination), p.identification)


_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}


class _Service:
    """A service with its table; `previous`: by slot, where packets of old connections go in unstable ones."""

    def __init__(self, spec: ServiceSpec, before: ServiceSpec | None) -> None:
        self.spec = spec
        self.reals = {real.address: real for real in spec.reals}
        self.table = _table(spec)
        old = _table(before) if before is not None else [None] * len(self.table)
        assert len(old) == len(self.table) or not spec.reals
        self.unstable = [was is not None and was != now for was, now in zip(old, self.table, strict=True)]
        self.previous = [was if moved else None for was, moved in zip(old, self.unstable, strict=True)]
        self.by_flow = spec.scheduling is not Scheduling.MAGLEV

    def up(self, real: IPAddress | None) -> RealSpec | None:
        found = None if real is None else self.reals.get(real)
        return found if found is not None and found.up else None

    def slot(self, flow: Tuple5, flow_name: int) -> int:
        sticky = self.spec.scheduling is Scheduling.STICKY
        return table_slot(client_hash(KEY, flow.source) if sticky else flow_name, len(self.table))

    def candidate(self, slot: int, flow_name: int) -> RealSpec | None:
        """Where the present table sends a flow that nobody knows."""
        real = self.up(self.table[slot])
        if self.spec.scheduling is not Scheduling.LEAST_CONNS:
            return real
        other = self.up(self.table[other_slot(flow_name, len(self.table))])
        if real is None or other is None:
            return real or other
        return other if other.load < real.load else real


def _table(spec: ServiceSpec) -> list[IPAddress | None]:
    """The address of the real in every slot."""
    takers = [real for real in spec.reals if real.up and real.weight]
    size = maglev.table_size(len(spec.reals))  # those that take nothing count too: sizes rarely change
    if not takers:
        return [None] * size
    table = maglev.build([real_identity(r.address) for r in takers], [r.weight for r in takers], size)
    return [takers[pick].address for pick in table.tolist()]


def maglev_choice(service: ServiceSpec, flow_name: int) -> RealSpec:
    """The real of the slot that the flow falls into."""
    table = _table(service)
    real = table[table_slot(flow_name, len(table))]
    assert real is not None
    return service.real(real)


class Oracle:
    """Knows one world, and the one that was before it; see `Kernel.install`."""

    def __init__(self, world: World, before: World | None = None) -> None:
        self._world = world
        old = {} if before is None else {service.name: service for service in before.services}
        self._services = {s.name: _Service(s, old.get(s.name)) for s in world.services}
        self._by_key = {
            (service.spec.vip.packed, port, protocol.number): service
            for service in self._services.values()
            for port, protocol in service.spec.ports
        }
        self._vips = {service.vip.packed: service.unknown for service in world.services}

    def predict(
        self, frame: bytes, flows: Flows, *, side: Side = Side.NEAR, room: bool = True, headroom: bool = True
    ) -> Outcome:
        """What the XDP program should do with a frame that comes in on `side`; brings `flows` up to date.

        `room`: whether the flow table would take another flow; `headroom`: the frame for outer headers.
        """
        verdict, real, name, p = self._decide(frame, flows, side, room)
        if real is not None:
            verdict, sent = self._send(frame, p, verdict, real, side, name)
            if verdict == "too_big_answered" and headroom:
                return Outcome(verdict, XdpAction.TX, sent)
            if verdict == "too_big_answered":
                verdict = "too_big"
            if ACTIONS[verdict] is Action.FORWARD and (headroom or len(sent) <= len(frame)):
                back = self._leaves_where_it_came(real, side)
                return Outcome(verdict, XdpAction.TX if back else XdpAction.REDIRECT, sent)
            if ACTIONS[verdict] is Action.FORWARD:
                verdict = "no_headroom"
        if verdict == "echo_answered":
            return Outcome(verdict, XdpAction.TX, oracle_send.echo_reply(frame, p))
        dropped = ACTIONS[verdict] is Action.DROP
        return Outcome(verdict, XdpAction.DROP if dropped else XdpAction.PASS, b"" if dropped else frame)

    def _decide(
        self, frame: bytes, flows: Flows, side: Side, room: bool
    ) -> tuple[str, RealSpec | None, int, Packet]:
        """The verdict, the real and the name by which the packet has its entropy."""
        p, problem = read(frame)
        if problem is not None:
            return (self._refused(frame, p, side, problem) if p.l3 else problem), None, 0, p
        if p.kind is Kind.FLOW:
            return *self._flow(frame, p, flows, side, room), p
        refused = self._refused(frame, p, side, "")
        if refused == "not_vip" and p.kind is Kind.ICMP and self._tells_of_tunnel(frame, p, side):
            return "path_too_small", None, 0, p
        if refused:
            return refused, None, 0, p
        if p.kind is Kind.ICMP:
            return *self._icmp(frame, p, flows), p
        return *self._later_fragment(p, flows), p

    def _refused(self, frame: bytes, p: Packet, side: Side, verdict: str) -> str:
        """The verdict for a packet that is for no service, or "" where it is to be looked at further."""
        unknown = self._vips.get(p.destination)
        if unknown is None:
            return "not_vip"
        if frame[:6] != OURS[side]:
            return "not_our_mac"
        passed = unknown is Unknown.PASS and verdict in ("no_service", "unsupported_protocol")
        return "unknown_passed" if passed else verdict

    def _tells_of_tunnel(self, frame: bytes, p: Packet, side: Side) -> bool:
        """Whether it is a router's word that a packet in a tunnel of ours was too big."""
        tunnel = oracle_read.read_quoted_tunnel(p, frame)
        if frame[:6] != OURS[side] or tunnel is None:
            return False
        return tunnel.destination in self._vips if tunnel.destination else tunnel.protocol != oracle_read.UDP

    def _flow(
        self, frame: bytes, p: Packet, flows: Flows, side: Side, room: bool
    ) -> tuple[str, RealSpec | None, int]:
        service = self._by_key.get((p.destination, p.dport, p.protocol))
        if service is None:
            return self._refused(frame, p, side, "no_service"), None, 0
        if frame[:6] != OURS[side]:
            return "not_our_mac", None, 0
        if p.ttl <= 1:
            return "ttl_expired", None, 0
        if p.first_fragment and self._world.drop_fragments:
            return "fragment", None, 0
        flow = Tuple5(address(p.source), address(p.destination), p.sport, p.dport, _PROTOCOLS[p.protocol])
        name = flow.hash
        verdict, real = _choose(service, p, flow, name, flows, room)
        if p.first_fragment and real is not None and room:
            flows[_fragment_name(p)] = Known(service.spec.name, real.address, FlowState.FRAGMENT)
        return verdict, real, name

    def _later_fragment(self, p: Packet, flows: Flows) -> tuple[str, RealSpec | None, int]:
        if p.ttl <= 1:
            return "ttl_expired", None, 0
        if self._world.drop_fragments:
            return "fragment", None, 0
        name = _fragment_name(p)
        first = flows.get(name)
        real = None
        if first is not None and first.state is FlowState.FRAGMENT and first.age <= FRAGMENT_TICKS:
            real = self._services[first.service].up(first.real)
        return ("fragment_unknown" if real is None else "forwarded_fragment"), real, name

    def _icmp(self, frame: bytes, p: Packet, flows: Flows) -> tuple[str, RealSpec | None, int]:
        if p.first_fragment:
            return "fragment", None, 0
        if oracle_read.is_echo_request(p, frame):
            # its journey ends here: its TTL does not matter (RFC 1122 3.2.1.7)
            return "echo_answered" if oracle_read.is_from_a_host(p) else "bad_source", None, 0
        if p.ttl <= 1:
            return "ttl_expired", None, 0
        quote = oracle_read.read_quote(p, frame) if oracle_read.is_error(p, frame) else None
        service = self._by_key.get((quote.vip, quote.vip_port, quote.protocol)) if quote else None
        if quote is None or service is None:
            return "bad_icmp", None, 0
        flow = _tuple_of(quote)
        name = flow.hash
        known, slot = flows.get(name), service.slot(flow, name)
        real = None
        if known is not None and known.service == service.spec.name:
            real = service.up(known.real)
        real = real or service.up(service.previous[slot]) or service.up(service.table[slot])
        return ("no_backend" if real is None else "forwarded_icmp"), real, name

    def _send(
        self, frame: bytes, p: Packet, verdict: str, real: RealSpec, side: Side, name: int
    ) -> tuple[str, bytes]:
        mode = real.forwarding.mode
        if real.mac is None or (mode is ForwardMode.L2 and not real.on_link):
            return "no_neighbour", b""
        if real.on_link and frame[6:12] == mac(real.mac):
            return "looped", b""
        room = self._room(p, real, side)
        if room is not None and p.total > room:
            return self._too_big(frame, p, room)
        if real.side in self._world.cut and not self._leaves_where_it_came(real, side):
            return "no_exit", b""
        source = mac(BOND_MAC) if real.side in self._world.bond else OURS[real.side]
        if self._leaves_where_it_came(real, side):
            source = frame[:6]
        return verdict, oracle_send.forwarded(frame, p, real, source, name)

    def _leaves_where_it_came(self, real: RealSpec, side: Side) -> bool:
        """Members of a bond are as good as each other."""
        return real.side is side or {real.side, side} <= self._world.bond

    def _room(self, p: Packet, real: RealSpec, side: Side) -> int | None:
        """The largest packet of the client's that gets to the real; None: any that came in.

        What goes on by the link it came by has fitted that. The kernel takes frames for another link of up to
        its MTU, an Ethernet header and one tag (xdp_ok_fwd_dev).
        """
        tunnel, stays = real.forwarding.mode.is_tunnel, self._leaves_where_it_came(real, side)
        limits = []
        if tunnel:
            limits.append(real.forwarding.mtu)
        known = real.side not in self._world.cut or real.side in self._world.bond
        mtu = self._world.mtu(real.side) if known else 0
        if (tunnel or not stays) and mtu:
            tags = 0 if stays else len(oracle_send.tags_towards(real, p))
            limits.append(mtu - 4 * max(0, tags - 1))
        around = oracle_send.tunnel_bytes(real) if tunnel else 0
        return min(limits) - around if limits else None

    def _too_big(self, frame: bytes, p: Packet, room: int) -> tuple[str, bytes]:
        """No error about an error, nor about an IPv4 fragment other than the first (RFC 1122 3.2.2)."""
        silent = p.kind is Kind.ICMP or (p.kind is Kind.LATER_FRAGMENT and p.version == 4)
        if not silent and not oracle_read.is_from_a_host(p):
            return "bad_source", b""
        if silent or not self._world.answers:
            return "too_big", b""
        answer = oracle_send.too_big(frame, p, room)
        return ("too_big", b"") if answer is None else ("too_big_answered", answer)


def _choose(
    service: _Service, p: Packet, flow: Tuple5, name: int, flows: Flows, room: bool
) -> tuple[str, RealSpec | None]:
    slot = service.slot(flow, name)
    unstable = service.unstable[slot]
    sampled = not (name >> 56) % SAMPLE
    if not (unstable or service.by_flow or p.ends or sampled):
        real = service.up(service.table[slot])
        if real is not None:
            return "forwarded_stable", real
    known = flows.get(name)
    another = known is not None and _is_another(known, p)
    if known is not None and not another and known.service == service.spec.name:
        real = service.up(known.real)
        if real is not None:
            flows[name] = _seen(known, p)
            return "forwarded_flow", real
        unstable = False
    verdict, real = "forwarded_new", None
    if unstable and not p.starts:
        real = service.up(service.previous[slot])
        verdict = "forwarded_previous" if real is not None else verdict
    real = real or service.candidate(slot, name)
    if real is None:
        return "no_backend", None
    if p.ends:
        return "forwarded_ending", real
    if known is None and not room:  # a start goes where the packets after it will, which nobody records
        former = service.up(service.previous[slot]) if unstable and p.starts else None
        return "forwarded_unrecorded", former or real
    flows[name] = Known(service.spec.name, real.address)
    return ("forwarded_rehashed" if known is not None and not another else verdict), real


def _is_another(known: Known, p: Packet) -> bool:
    """Whether the packet begins a flow, and the one of that name has been silent for too long to be meant."""
    if known.age <= KEPT_TICKS[known.state]:
        return False
    return known.age > UDP_OVER_TICKS if p.protocol == UDP else p.starts and not p.ends


def _seen(known: Known, p: Packet) -> Known:
    """The entry after one more packet. That of a connection that has ended tells when it did."""
    state = _after(known.state, known.age, p)
    kept = state is FlowState.CLOSING is known.state and not p.ends
    return replace(known, state=state, age=known.age if kept else 0)


def _after(state: FlowState, age: int, p: Packet) -> FlowState:
    if p.ends:
        return FlowState.CLOSING
    if state is FlowState.CLOSING and p.starts:
        return FlowState.UNPROVEN
    if state is FlowState.CLOSING:
        return FlowState.PROVING if age >= HALF_CLOSED_TICKS else state
    if state is FlowState.UNPROVEN and age:
        return FlowState.PROVING
    if state is FlowState.PROVING and age:
        return FlowState.STREAM if p.protocol == UDP else FlowState.ESTABLISHED
    return state


def expect_probe(frame: bytes, real: RealSpec | None) -> Outcome:
    """What the TC program should do with our own frame to a real; None: the mark names no backend.

    A socket's packet has neither tags nor extension headers. What is behind the Ethernet header matters only
    where more is changed than that.
    """
    l2 = real is not None and real.forwarding.mode is ForwardMode.L2
    if real is None or real.mac is None or (l2 and not real.on_link):
        return Outcome("probe_no_backend", TcAction.SHOT, frame)
    there = TcAction.OK if real.side is Side.NEAR else TcAction.REDIRECT
    if l2:
        return Outcome("probe", there, mac(real.mac) + OURS[real.side] + frame[12:])
    p, problem = read(frame, extensions=False)
    if p.tags or problem not in (None, "unsupported_protocol"):
        return Outcome("probe_no_backend", TcAction.SHOT, frame)
    name = flow_hash(KEY, address(p.source), address(p.destination), p.sport, p.dport, p.protocol)
    return Outcome("probe", there, oracle_send.probe(frame, p, real, name))
