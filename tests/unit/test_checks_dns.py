"""The dns check against real servers on loopback, by UDP and TCP."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from tests.unit.checks_rig import (
    LOOPBACK,
    Handler,
    address,
    answering,
    check_of,
    in_new_network,
    serving,
    unused_port,
)
from vc5py.checks import ProbeResult, Reason, probe
from vc5py.model import CheckType, Protocol

QUESTION: dict[str, Any] = {"name": "www.example.com", "record": "A"}
FOUND = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + bytes([192, 0, 2, 1])


def reply_to(
    question: bytes, rcode: int = 0, flags: int = 0x8180, answers: int = 1, data: bytes = FOUND
) -> bytes:
    return question[:2] + struct.pack("!HHHHH", flags | rcode, 1, answers, 0, 0) + question[12:] + data


async def ask(reply: Any, **changes: Any) -> ProbeResult:
    async with answering(reply) as server:
        check = check_of(CheckType.DNS, server.port, **{**QUESTION, **changes})
        return await probe(LOOPBACK, check, 0, None)


async def test_any_answer_will_do_if_none_is_asked_for() -> None:
    result = await ask(reply_to)
    assert (result.ok, result.detail) == (True, "noerror, 1 answers")
    assert (await ask(lambda q: reply_to(q, answers=0, data=b""))).detail == "noerror, 0 answers"


def test_ipv6() -> None:
    async def main() -> None:
        async with answering(reply_to, host="::1") as server:
            check = check_of(CheckType.DNS, server.port, **QUESTION)
            assert (await probe(address("::1"), check, 0, LOOPBACK)).ok

    in_new_network(main)


@pytest.mark.parametrize(
    ("changes", "reply", "reason", "detail"),
    [
        ({"answer": "192.0.2.1"}, {}, Reason.OK, "noerror, 1 answers"),
        ({"answer": "192.0.2.2"}, {}, Reason.UNEXPECTED_ANSWER, "1 answers, the first is '192.0.2.1'"),
        ({"answer": "192.0.2.2"}, {"answers": 0, "data": b""}, Reason.UNEXPECTED_ANSWER, "0 answers"),
        ({"answer": "192.0.2.2"}, {"flags": 0x8380}, Reason.TRUNCATED, "truncated after 1 answers"),
        ({"answer": "192.0.2.1"}, {"flags": 0x8380}, Reason.OK, "noerror, 1 answers"),
        ({}, {"rcode": 2}, Reason.UNEXPECTED_RCODE, "servfail"),
        ({"rcode": "servfail"}, {"rcode": 2}, Reason.OK, "servfail, 1 answers"),
        ({"rcode": "nxdomain"}, {}, Reason.UNEXPECTED_RCODE, "noerror"),
        ({}, {"flags": 0x0100}, Reason.BAD_DNS_MESSAGE, "not the response to a query"),
        ({}, {"answers": 2}, Reason.BAD_DNS_MESSAGE, "ends within a name"),
    ],
)
async def test_each_outcome_has_its_reason(
    changes: dict[str, Any], reply: dict[str, Any], reason: Reason, detail: str
) -> None:
    result = await ask(lambda question: reply_to(question, **reply), **changes)
    assert (result.ok, result.reason, result.detail) == (reason is Reason.OK, reason, detail)


async def test_another_question_or_id() -> None:
    other_id = await ask(lambda question: reply_to(bytes([question[0] ^ 1]) + question[1:]))
    assert other_id.reason is Reason.WRONG_DNS_ID
    other_name = await ask(lambda question: reply_to(question.replace(b"www", b"ftp")))
    assert other_name.reason is Reason.WRONG_DNS_QUESTION


async def test_silence_and_nobody() -> None:
    silent = await ask(lambda _: None, timeout_s=0.3)
    assert (silent.reason, silent.detail) == (Reason.TIMEOUT, "no reply in time, 0 bytes received")
    assert 0.3 <= silent.duration_s < 1.5
    with unused_port(socket.SOCK_DGRAM) as port:
        nobody = await probe(LOOPBACK, check_of(CheckType.DNS, port, **QUESTION), 0, None)
    assert (nobody.reason, nobody.detail) == (Reason.PORT_UNREACHABLE, f"nobody has UDP port {port}")


async def test_ids_differ() -> None:
    ids = set()

    def reply(question: bytes) -> bytes:
        ids.add(question[:2])
        return reply_to(question)

    async with answering(reply) as server:
        check = check_of(CheckType.DNS, server.port, **QUESTION)
        for _ in range(20):
            assert (await probe(LOOPBACK, check, 0, None)).ok
    assert len(ids) > 15


# --- by TCP ---


async def read_question(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def replies(then_close: bool = False, cut: int | None = None, pause_s: float = 0.0) -> Handler:
    """The right reply, up to `cut`, byte by byte."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = reply_to(await read_question(reader))
        for byte in (len(reply).to_bytes(2, "big") + reply)[:cut]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(pause_s)
        if then_close:
            writer.write_eof()

    return handler


async def ask_by_tcp(handler: Handler, **changes: Any) -> ProbeResult:
    async with serving(handler) as server:
        details = {**QUESTION, "transport": Protocol.TCP, **changes}
        return await probe(LOOPBACK, check_of(CheckType.DNS, server.port, **details), 0, None)


async def test_by_tcp_the_reply_may_come_in_pieces() -> None:
    result = await ask_by_tcp(replies(), answer="192.0.2.1")
    assert (result.ok, result.detail) == (True, "noerror, 1 answers")


@pytest.mark.parametrize(
    ("handler", "reason", "detail"),
    [
        (replies(then_close=True, cut=0), Reason.SHORT_READ, "closed after 0 bytes"),
        (replies(then_close=True, cut=1), Reason.SHORT_READ, "closed after 1 bytes"),
        (replies(then_close=True, cut=20), Reason.SHORT_READ, "closed after 20 bytes"),
        (replies(cut=0), Reason.TIMEOUT, "no reply in time, 0 bytes received"),
        (replies(cut=30), Reason.TOO_SLOW, "no reply in time, 30 bytes received"),
        (replies(pause_s=0.05), Reason.TOO_SLOW, "no reply in time"),
    ],
)
async def test_bad_streams(handler: Handler, reason: Reason, detail: str) -> None:
    result = await ask_by_tcp(handler, timeout_s=5.0 if reason is Reason.SHORT_READ else 0.5)
    assert (result.ok, result.reason) == (False, reason)
    assert result.detail.startswith(detail)


async def test_no_more_is_read_than_one_message() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_question(reader)
        writer.write(b"\xff\xff")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    assert (await ask_by_tcp(handler)).reason is Reason.WRONG_DNS_ID


async def test_by_tcp_nobody() -> None:
    with unused_port() as port:
        check = check_of(CheckType.DNS, port, transport=Protocol.TCP)
        assert (await probe(LOOPBACK, check, 0, None)).reason is Reason.REFUSED
