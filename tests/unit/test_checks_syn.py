"""The syn check on loopback and between two networks: what is on the wire, and what isn't."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.unit.checks_rig import (
    BEYOND,
    OWN,
    OWN6,
    VIP,
    VIP6,
    Wire,
    address,
    check_of,
    descriptors,
    in_new_network,
    unused_port,
)
from vc5py.checks import ProbeResult, Reason, probe
from vc5py.checks.half_open import shared
from vc5py.checks.tcp_segment import ACK, SYN, Answer, Ends, parse, rst, syn, without_ip_header
from vc5py.model import CheckType, IPAddress

ETH_P_ALL = 3


async def knock(
    vip: str, port: int, source: IPAddress | None = None, mark: int = 0, timeout_s: float = 5.0
) -> ProbeResult:
    return await probe(address(vip), check_of(CheckType.SYN, port, timeout_s=timeout_s), mark, source)


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        sock.listen(16)
        sock.setblocking(False)
        yield sock


# --- segments ---


@pytest.mark.parametrize(("own", "peer"), [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::7")])
@pytest.mark.parametrize(("make", "flags"), [(syn, "S"), (rst, "R")])
def test_segments_as_another_makes_them(own: str, peer: str, make: object, flags: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        ports = rng.randrange(1 << 16), rng.randrange(1 << 16)
        sequence = rng.randrange(1 << 32)
        layer = IPv6(src=own, dst=peer) if ":" in own else IP(src=own, dst=peer)
        options = [("MSS", 1460)] if flags == "S" else []
        window = 64240 if flags == "S" else 0
        segment = TCP(
            sport=ports[0], dport=ports[1], seq=sequence, flags=flags, window=window, options=options
        )
        whole = bytes(layer / segment)
        expected = whole[40:] if ":" in own else without_ip_header(whole)
        assert make(Ends(address(own), ports[0], address(peer), ports[1]), sequence) == expected  # type: ignore[operator]


def test_parse() -> None:
    segment = bytes(TCP(sport=80, dport=4711, seq=1, ack=0x01020304, flags="SA"))
    assert parse(segment) == Answer(80, 4711, 0x01020304, SYN | ACK)
    assert parse(segment[:19]) is None
    assert parse(b"") is None
    assert without_ip_header(b"") == b""
    assert without_ip_header(bytes(IP(options=[]) / b"x")) == b"x"
    assert without_ip_header(b"\x46" + bytes(23) + b"x") == b"x"


# --- probes ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listening_port_answers_and_no_connection_comes_of_it(host: str) -> None:
    async def main() -> None:
        with listening(host) as sock:
            result = await knock(host, sock.getsockname()[1])
            assert (result.ok, result.detail) == (True, "SYN-ACK")
            with pytest.raises(BlockingIOError):
                sock.accept()

    in_new_network(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_closed_port_refuses_at_once(host: str) -> None:
    async def main() -> None:
        with unused_port(host=host) as port:
            result = await knock(host, port)
        words = "RST in answer to the SYN"
        assert (result.ok, result.reason, result.detail) == (False, Reason.REFUSED, words)

    in_new_network(main)


async def test_silence() -> None:
    with listening() as sock:
        sock.listen(0)
        port = sock.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the backlog is full: further SYNs are dropped
            result = await knock("127.0.0.1", port, timeout_s=0.5)
    assert (result.reason, result.detail) == (Reason.TIMEOUT, "no connect in time, 0 bytes received")
    assert 0.5 <= result.duration_s < 1.5


async def test_a_lost_syn_is_sent_again_after_a_second() -> None:
    with listening() as sock:
        sock.listen(0)
        port = sock.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            probing = asyncio.create_task(knock("127.0.0.1", port), name="probe")
            await asyncio.sleep(0)  # now the first SYN is gone, and lost
            with sock.accept()[0]:
                result = await probing
    assert (result.ok, result.duration_s >= 1.0) == (True, True)


async def test_the_traffic_of_others_does_not_wake_us() -> None:
    with shared("127.0.0.1", socket.AF_INET) as half_open, listening() as sock:
        with socket.create_connection(sock.getsockname()):
            pass
        with pytest.raises(BlockingIOError):
            half_open._raw.recv(100)


async def test_many_at_once_each_get_their_own_answer() -> None:
    before = descriptors()
    with contextlib.ExitStack() as stack:
        good = [stack.enter_context(listening()).getsockname()[1] for _ in range(10)]
        bad = [stack.enter_context(unused_port()) for _ in range(10)]
        ports = [*good, *bad] * 5
        random.Random(1).shuffle(ports)
        sources = [None, IPv4Address("127.0.0.9")]
        results = await asyncio.gather(*(knock("127.0.0.1", port, sources[port % 2]) for port in ports))
        assert [result.ok for result in results] == [port in good for port in ports]
    assert descriptors() == before


def test_without_a_route() -> None:
    async def main() -> None:
        result = await knock("192.0.2.1", 80, mark=1)
        assert (result.ok, result.reason) == (False, Reason.UNREACHABLE)

    in_new_network(main)


# --- on the wire, between two networks ---


@contextlib.asynccontextmanager
async def captured() -> AsyncIterator[list[tuple[str, int]]]:
    """The TCP segments on the wire meanwhile: their flags and their mark where they are ours."""
    segments: list[tuple[str, int]] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
        sock.bind(("near", ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, 75, 1)  # SO_RCVMARK
        sock.setblocking(False)
        yield segments
        with contextlib.suppress(BlockingIOError):
            while True:
                data, control, *_ = sock.recvmsg(2048, 100)
                packet = (IPv6 if data[0] >> 4 == 6 else IP)(data)
                if TCP in packet:
                    marks = [struct.unpack("I", value)[0] for *_, value in control]
                    segments.append((str(packet[TCP].flags), marks[0] if marks else 0))


@pytest.mark.parametrize(("own", "vip"), [(OWN, VIP), (OWN6, VIP6)])
def test_three_segments_all_of_ours_marked_and_nothing_stays_half_open(own: str, vip: str) -> None:
    async def main() -> None:
        wire = Wire()
        listener = wire.listen()
        try:
            assert (await knock(vip, 80)).ok  # both sides know each other's MAC addresses now
            async with captured() as segments:
                result = await knock(vip, 80, address(own), mark=0x77)
            assert (result.ok, result.detail) == (True, "SYN-ACK")
            assert segments == [("S", 0x77), ("SA", 0), ("R", 0x77)]
            with socket.create_connection((vip, 80)):  # by now the other side has got the RST, too
                assert wire.half_open() == 0
        finally:
            listener.communicate("\n")
            wire.close()

    in_new_network(main)


def test_what_was_refused_needs_no_reset() -> None:
    async def main() -> None:
        wire = Wire()
        try:
            assert (await knock(VIP, 81)).reason is Reason.REFUSED
            async with captured() as segments:
                await knock(VIP, 81, address(OWN), mark=0x77)
            assert segments == [("S", 0x77), ("RA", 0)]
        finally:
            wire.close()

    in_new_network(main)


def test_an_icmp_error_is_known_at_once() -> None:
    async def main() -> None:
        wire = Wire()
        try:
            for vip in BEYOND:
                result = await knock(vip, 80, mark=1)
                assert (result.ok, result.reason) == (False, Reason.UNREACHABLE), vip
        finally:
            wire.close()

    in_new_network(main)
