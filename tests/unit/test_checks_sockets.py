"""The tcp check, and what all probes by TCP share: sources, marks, routes, deadlines, the byte cap."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from tests.unit.checks_rig import (
    LOOPBACK,
    OK_RESPONSE,
    address,
    answers,
    check_of,
    descriptors,
    http_check,
    in_new_network,
    read_request,
    says_nothing,
    serving,
    unused_port,
)
from vc5py.checks import Reason, probe
from vc5py.checks.connection import open_tcp
from vc5py.checks.result import reason_of
from vc5py.checks.sockets import Attempt
from vc5py.model import CheckType


async def test_tcp_needs_no_more_than_a_handshake_and_leaves_with_a_reset() -> None:
    async with serving(says_nothing) as server:
        result = await probe(LOOPBACK, check_of(CheckType.TCP, server.port), 0, None)
        assert (result.ok, result.reason, result.detail) == (True, Reason.OK, "connected")
        assert await server.endings.get() == "reset"


def test_ipv6() -> None:
    async def main() -> None:
        async with serving(answers(OK_RESPONSE), host="::1") as server:
            assert (await probe(IPv6Address("::1"), http_check(server.port), 0, LOOPBACK)).ok
            assert server.peers == ["::1"]

    in_new_network(main)


STREAMS = (CheckType.HTTP, CheckType.HTTPS, CheckType.TCP)


@pytest.mark.parametrize("kind", STREAMS)
async def test_refused(kind: CheckType) -> None:
    with unused_port() as port:
        result = await probe(LOOPBACK, check_of(kind, port), 0, None)
    assert (result.ok, result.reason) == (False, Reason.REFUSED)
    assert result.detail == "connect: Connection refused"


async def test_connecting_is_within_the_deadline() -> None:
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # the backlog is full: the kernel drops further SYNs
        port = full.getsockname()[1]
        result = await probe(LOOPBACK, check_of(CheckType.TCP, port, timeout_s=0.1), 0, None)
    assert (result.reason, result.detail) == (Reason.TIMEOUT, "no connect in time, 0 bytes received")
    assert 0.1 <= result.duration_s < 1.5


async def test_the_source_address_is_used() -> None:
    async with serving(answers(OK_RESPONSE)) as server:
        assert (await probe(LOOPBACK, http_check(server.port), 0, IPv4Address("127.0.0.9"))).ok
        assert server.peers == ["127.0.0.9"]


@pytest.mark.parametrize("kind", list(CheckType))
async def test_a_source_address_we_do_not_have_is_our_own_fault(kind: CheckType) -> None:
    result = await probe(LOOPBACK, check_of(kind, 1), 0, IPv4Address("192.0.2.77"))
    assert (result.ok, result.reason) == (False, Reason.LOCAL)


async def test_no_descriptor_is_left_behind() -> None:
    """The kernel alone takes these connections, so that every descriptor is the probe's."""
    with socket.socket() as listener, unused_port() as unused:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        port = listener.getsockname()[1]
        before = descriptors()
        for kind in CheckType:
            await probe(LOOPBACK, check_of(kind, port, timeout_s=0.02), 0, None)
            await probe(LOOPBACK, check_of(kind, unused), 0, None)
            await probe(LOOPBACK, check_of(kind, port), 0, IPv4Address("192.0.2.77"))
        assert descriptors() == before


async def test_cancelling_a_probe_closes_its_socket() -> None:
    connected = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        connected.set()

    async with serving(handler) as server:
        task = asyncio.create_task(probe(LOOPBACK, http_check(server.port), 0, None), name="probe")
        await connected.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await server.endings.get() == "reset"


def test_an_error_no_network_can_cause_has_no_reason() -> None:
    assert reason_of(OSError("without a number")) is None
    assert reason_of(OSError(9, "bad descriptor")) is None
    assert reason_of(OSError(113, "no route")) is Reason.UNREACHABLE


# --- marks and routes, in a network of their own ---


@pytest.mark.parametrize("vip", ["127.0.0.1", "::1"])
def test_the_syn_itself_carries_the_mark(vip: str) -> None:
    """The kernel copies the mark of a SYN to the accepted socket when told so: seen from the other end."""

    async def main() -> None:
        Path("/proc/sys/net/ipv4/tcp_fwmark_accept").write_text("1")
        marks: list[int] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            marks.append(writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
            await answers(OK_RESPONSE)(reader, writer)

        async with serving(handler, host=vip) as server:
            for mark in (0x1234, 7, 0):
                assert (await probe(address(vip), http_check(server.port), mark, None)).ok
        assert marks == [0x1234, 7, 0]

    in_new_network(main)


def test_without_a_route_the_vip_is_unreachable() -> None:
    async def main() -> None:
        result = await probe(IPv4Address("192.0.2.1"), http_check(80), 1, None)
        assert (result.ok, result.reason) == (False, Reason.UNREACHABLE)
        assert result.detail == "connect: Network is unreachable"

    in_new_network(main)


def test_thousands_of_probes_leave_no_time_wait() -> None:
    async def main() -> None:
        async with serving(answers(OK_RESPONSE)) as server:
            for _ in range(20):
                assert (await probe(LOOPBACK, http_check(server.port), 0, None)).ok
        time_wait = "06"
        table = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        assert [line for line in table if line.split()[3] == time_wait] == []

    in_new_network(main)


async def test_the_byte_cap_is_exact() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1001)

    async with serving(handler) as server:
        attempt = Attempt(LOOPBACK, server.port, 0, None, max_bytes=1000)
        async with open_tcp(attempt) as stream:
            received = b""
            with pytest.raises(Exception, match="more than 1000 bytes"):
                while True:
                    received += await stream.recv()
    assert len(received) == attempt.received == 1000
