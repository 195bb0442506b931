"""The udp check against real servers on loopback, and the mark on its datagrams."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address
from typing import Any

import pytest

from tests.unit.checks_rig import (
    BEYOND,
    LOOPBACK,
    Responder,
    Wire,
    address,
    answering,
    check_of,
    descriptors,
    in_new_network,
    unused_port,
)
from vc5py.checks import ProbeResult, Reason, probe
from vc5py.model import CheckType

SO_RCVMARK = 75  # <asm-generic/socket.h>


async def send(responder: Responder, **changes: Any) -> ProbeResult:
    async with answering(responder) as server:
        return await probe(LOOPBACK, check_of(CheckType.UDP, server.port, **changes), 0, None)


async def test_the_payload_is_sent_and_any_reply_is_good() -> None:
    received: list[bytes] = []

    def echo(data: bytes) -> bytes:
        received.append(data)
        return data

    result = await send(echo, payload=b"\x00ping\xff")
    assert (result.ok, result.detail) == (True, "a reply of 6 bytes")
    empty = await send(echo)
    assert (empty.ok, empty.detail) == (True, "a reply of 0 bytes")
    assert received == [b"\x00ping\xff", b""]


@pytest.mark.parametrize(
    ("reply", "expected", "reason", "detail"),
    [
        (b"pong", b"pong", Reason.OK, "a reply of 4 bytes"),
        (b"pong and more", b"pong", Reason.OK, "a reply of 13 bytes"),
        (b"pon", b"pong", Reason.UNEXPECTED_REPLY, "a reply of 3 bytes, beginning with 706f6e"),
        (b"", b"pong", Reason.UNEXPECTED_REPLY, "a reply of 0 bytes"),
        (b"", b"", Reason.OK, "a reply of 0 bytes"),
        (bytes(60_000), b"x", Reason.UNEXPECTED_REPLY, "a reply of 60000 bytes, beginning with " + "00" * 40),
    ],
)
async def test_the_reply_must_begin_as_expected(
    reply: bytes, expected: bytes, reason: Reason, detail: str
) -> None:
    result = await send(lambda _: reply, reply=expected)
    assert (result.ok, result.reason, result.detail) == (reason is Reason.OK, reason, detail)


async def test_silence() -> None:
    result = await send(lambda _: None, timeout_s=0.1)
    assert (result.reason, result.detail) == (Reason.TIMEOUT, "no reply in time, 0 bytes received")
    assert 0.1 <= result.duration_s < 1.5


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_unreachable_is_known_at_once(host: str) -> None:
    async def main() -> None:
        with unused_port(socket.SOCK_DGRAM, host) as port:
            result = await probe(address(host), check_of(CheckType.UDP, port), 0, None)
        assert (result.ok, result.reason) == (False, Reason.PORT_UNREACHABLE)
        assert result.duration_s < 1.0

    in_new_network(main)


async def test_the_source_address_is_used_and_nobody_else_can_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:

        def someone_else(_: bytes) -> None:
            other.sendto(b"pong", (server.peers[-1], server.last_port))

        async with answering(someone_else) as server:
            before = descriptors()
            check = check_of(CheckType.UDP, server.port, timeout_s=0.1)
            result = await probe(LOOPBACK, check, 0, IPv4Address("127.0.0.9"))
            assert (result.reason, server.peers) == (Reason.TIMEOUT, ["127.0.0.9"])
            assert descriptors() == before


@pytest.mark.parametrize("vip", ["127.0.0.1", "::1"])
def test_the_datagram_carries_the_mark(vip: str) -> None:
    """The kernel tells a receiver of the mark that a datagram came with, on one and the same machine."""

    async def main() -> None:
        family = socket.AF_INET6 if ":" in vip else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
            sock.bind((vip, 0))
            check = check_of(CheckType.UDP, sock.getsockname()[1], payload=b"ping", timeout_s=0.05)
            await probe(address(vip), check, 0x1234, None)
            data, control, *_ = sock.recvmsg(100, 100)
        assert data == b"ping"
        assert [struct.unpack("I", value)[0] for *_, value in control] == [0x1234]

    in_new_network(main)


def test_an_unreachable_host_is_known_at_once() -> None:
    """The kernel tells of this ICMP error only if asked to."""

    async def main() -> None:
        wire = Wire()
        try:
            for vip in BEYOND:
                result = await probe(address(vip), check_of(CheckType.UDP, 53), 1, None)
                assert (result.ok, result.reason) == (False, Reason.UNREACHABLE), vip
                assert result.detail.startswith("reply: ")
        finally:
            wire.close()

    in_new_network(main)
