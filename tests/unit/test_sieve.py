"""What the kernel throws away of a flood: over real sockets, by the very look of our datagrams."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any, cast

import pytest

from tests.unit.test_sharer import StandIn, exchange
from vc5py.core.flowsync import BY_LOOK, EVERYBODY, Codec, Key, Kind, Outcome, cluster_id
from vc5py.core.peering import Peering
from vc5py.model import IPAddress
from vc5py.peers.exchange import Exchange
from vc5py.peers.sieve import FLOOD, WINDOW_S, Guard
from vc5py.peers.transport import Places, Transport
from vc5py.sharer import TICK_S, Director, Service, Sharer

KEYS = [Key.derive(b"the secret of the tests"), Key.derive(b"another secret of the tests")]
CLUSTER = cluster_id("tests")
BODY = bytes(16)
IP_RECVTTL, IPV6_RECVHOPLIMIT = 12, 51


def datagram(keys: list[Key] = KEYS, cluster: int = CLUSTER) -> bytes:
    return Codec(keys, cluster, 2, 22).seal(Kind.FLOWS, EVERYBODY, 0, 1, BODY)


GOOD = datagram()
UNWANTED = {
    Outcome.SHORT: GOOD[:63],
    Outcome.FOREIGN: b"VC5s" + GOOD[4:],
    Outcome.VERSION: GOOD[:4] + b"\2" + GOOD[5:],
    Outcome.CLUSTER: datagram(cluster=CLUSTER ^ 1),
    Outcome.KEY: datagram(keys=[Key.derive(b"a secret of somebody else")]),
}
JUDGED = {
    Outcome.UNPROVEN: datagram(keys=KEYS[::-1]),  # signed with the second key
    Outcome.FORGED: GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
}


@dataclass
class Rig:
    """A node, and a socket at `source` from which it is talked to."""

    transport: Transport
    exchange: Exchange
    target: tuple[str, int]
    outside: socket.socket

    def take(self, *datagrams: bytes) -> Counter[Outcome]:
        """What becomes of them; those that arrive."""
        for data in datagrams:
            self.outside.sendto(data, self.target)
        before = self.exchange.counts.received.copy()
        self.exchange.receive(0.0)  # over loopback all has come by then
        return self.exchange.counts.received - before


def rig(source: IPAddress, listens_to: tuple[IPAddress, ...], group: IPAddress | None = None) -> Rig:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    outside = socket.socket(family, socket.SOCK_DGRAM)
    outside.bind((str(source), 0))
    outside.settimeout(60)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    places = Places(port, group, socket.if_nametoindex("lo"), listens_to)
    transport = Transport(places)
    node = Exchange(Codec(KEYS, CLUSTER, 1, 11), transport, Peering(1, 11, 0.0), 1400)
    target = "127.0.0.1" if source.version == 4 else "::1"
    return Rig(transport, node, (target, port), outside)


ONE, OTHER, SIX = ip_address("127.0.0.2"), ip_address("127.0.0.3"), ip_address("::1")
PEERS = tuple(IPv4Address(0x0A000000 + n) for n in range(63))
PEERS6 = tuple(ip_address((0xFD00 << 112) + n) for n in range(63))


@pytest.mark.parametrize(
    ("source", "listens_to", "group"),
    [
        (ONE, (*PEERS, ONE), None),
        (ONE, (*PEERS6, ONE), None),
        (SIX, (*PEERS6, SIX), None),
        (ONE, (), ip_address("239.1.2.3")),
    ],
)
def test_flood_is_thrown_away_by_the_kernel_and_all_else_is_judged(
    source: IPAddress, listens_to: tuple[IPAddress, ...], group: IPAddress | None
) -> None:
    made = rig(source, listens_to, group)
    with closing(made.transport), made.outside:
        everything = (*UNWANTED.values(), *JUDGED.values())
        each = Counter((*UNWANTED, *JUDGED))
        assert made.take(*everything) == each, "each by its reason"
        assert (made.exchange.unwanted(), made.transport.dropped()) == (len(UNWANTED), 0)
        for drops in (len(UNWANTED), 2 * len(UNWANTED)):
            made.transport.sift(made.exchange.look())
            assert made.take(*everything) == Counter(JUDGED.keys())
            assert made.transport.dropped() == drops
            made.transport.sift(None)
            assert made.take(*everything) == each


def test_only_peers_are_heard_in_a_flood() -> None:
    made = rig(OTHER, (*PEERS, ONE))
    with closing(made.transport), made.outside:
        assert made.take(GOOD, GOOD) == {Outcome.SOURCE: 2}
        made.transport.sift(made.exchange.look())
        assert made.take(GOOD, GOOD) == {}
        assert made.transport.dropped() == 2


@pytest.mark.parametrize(
    ("source", "level", "receive"),
    [(ONE, socket.IPPROTO_IP, IP_RECVTTL), (SIX, socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT)],
)
def test_what_is_sent_to_one_node_has_the_ttl_of_its_link(
    source: IPAddress, level: int, receive: int
) -> None:
    made = rig(source, (source,))
    with closing(made.transport), made.outside:
        made.outside.setsockopt(level, receive, 1)
        made.transport.send(GOOD, made.outside.getsockname())
        _, [(_, _, ttl)], _, _ = made.outside.recvmsg(2000, 100)
        assert int.from_bytes(ttl[:4], sys.byteorder) == 255


def test_by_look_is_what_needs_no_signature() -> None:
    assert set(BY_LOOK) == set(UNWANTED)


def test_flood_is_one_at_once_and_over_after_a_window() -> None:
    guard, total = Guard(), 0
    assert not guard.look(total, 0.0)
    total += FLOOD - 1
    assert not guard.look(total, 0.9 * WINDOW_S)
    total += 1
    assert guard.look(total, 0.95 * WINDOW_S)
    assert guard.look(total, WINDOW_S), "of this window too"
    total += FLOOD
    assert guard.look(total, 2 * WINDOW_S)
    assert guard.look(total, 2.9 * WINDOW_S)
    assert not guard.look(total, 3 * WINDOW_S)


def test_service_sifts_while_there_is_a_flood() -> None:
    class Ours:
        failed = drops = 0
        sifts: object = None

        def filenos(self) -> list[int]:
            return []

        def dropped(self) -> int:
            return self.drops

        def sift(self, look: object) -> None:
            self.sifts = look

    theirs, ours = socket.socketpair()
    with theirs, ours:
        node, transport = exchange((1, 11), cast(Any, None)), Ours()
        director = Director(theirs.fileno(), theirs.fileno())
        service = Service(cast(Sharer, StandIn(exchange=node)), cast(Transport, transport), director, 30.0)
        now, seen = service._due, []
        for step in range(50):
            if 10 <= step < 12:
                node.counts.received[Outcome.KEY] += FLOOD
            elif 12 <= step < 25:
                transport.drops += FLOOD
            service._work(now := now + TICK_S)
            seen.append(transport.sifts is not None)
    assert seen[:10] == [False] * 10
    assert all(seen[10:25])
    assert not any(seen[45:])
