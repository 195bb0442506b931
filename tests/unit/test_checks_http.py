"""The http check against real servers on loopback, well-behaved and hostile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.checks_rig import (
    LOOPBACK,
    OK_RESPONSE,
    Handler,
    address,
    answers,
    answers_endlessly,
    check_of,
    http_check,
    probe_against,
    read_request,
    resets,
    says_nothing,
    serving,
)
from vc5py import __version__
from vc5py.checks import Reason, probe
from vc5py.checks.http import MAX_ANNOUNCED, MAX_BODY, MAX_BYTES_WITH_BODY, format_request
from vc5py.checks.sockets import MAX_BYTES
from vc5py.model import CheckType


async def test_expected_status_is_ok() -> None:
    result = await probe_against(answers(OK_RESPONSE))
    assert (result.ok, result.reason, result.detail) == (True, Reason.OK, "status 200")
    assert 0 < result.duration_s < 5


@pytest.mark.parametrize(
    ("response", "reason", "detail"),
    [
        (b"HTTP/1.1 500 No\r\n\r\n", Reason.UNEXPECTED_STATUS, "status 500"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", Reason.REDIRECT, "status 301"),
        (b"220 mail ESMTP\r\n", Reason.BAD_STATUS_LINE, "bad status line '220 mail ESMTP\\r'"),
        (b"\x16\x03\x01\x02", Reason.BAD_STATUS_LINE, "bad status line '\\x16\\x03\\x01\\x02'"),
        (b"", Reason.SHORT_READ, "closed after 0 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", Reason.SHORT_READ, "closed after 23 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30),
            Reason.TOO_MUCH_DATA,
            f"announces a body of {1 << 30} bytes",
        ),
    ],
)
async def test_bad_answers_have_their_own_reasons(response: bytes, reason: Reason, detail: str) -> None:
    result = await probe_against(answers(response, then_close=True))
    assert (result.ok, result.reason, result.detail) == (False, reason, detail)


async def test_interim_responses_are_skipped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert (await probe_against(answers(interim + OK_RESPONSE))).ok


async def test_a_redirect_is_just_a_status_and_never_followed() -> None:
    async with serving(answers(OK_RESPONSE)) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/".encode()
        redirect = answers(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n")
        assert (await probe_against(redirect)).reason is Reason.REDIRECT
        assert (await probe_against(redirect, expect=frozenset({200, 302}))).ok
        assert elsewhere.peers == []


async def test_endless_header_is_cut_off() -> None:
    result = await probe_against(answers_endlessly(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100))
    assert (result.ok, result.reason) == (False, Reason.HEADER_TOO_LARGE)


async def test_endless_interim_responses_meet_the_byte_cap() -> None:
    result = await probe_against(answers_endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100))
    assert (result.reason, result.detail) == (Reason.TOO_MUCH_DATA, f"more than {MAX_BYTES} bytes")


async def test_an_endless_body_is_never_read() -> None:
    async with serving(answers_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536))) as server:
        result = await probe(LOOPBACK, http_check(server.port), 0, None)
        assert (result.ok, await server.endings.get()) == (True, "reset")


async def test_a_body_that_is_only_announced_is_fine_for_head() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_ANNOUNCED + 1)
    assert (await probe_against(answers(response), method="HEAD")).ok
    assert (await probe_against(answers(response))).reason is Reason.TOO_MUCH_DATA


async def test_reset_instead_of_an_answer() -> None:
    assert (await probe_against(resets)).reason is Reason.RESET


@pytest.mark.parametrize(
    ("handler", "reason", "phase"),
    [
        (says_nothing, Reason.TIMEOUT, "no response in time, 0 bytes received"),
        (answers_endlessly(b"HTTP/1.1 200 ", b"x", 0.01), Reason.TOO_SLOW, "no response in time"),
        (answers_endlessly(b"HTTP/1.1 200 OK\r\n", b"A", 0.01), Reason.TOO_SLOW, "no response in time"),
        (answers_endlessly(b"", b"HTTP/1.1 100 C\r\n\r\n", 0.01), Reason.TOO_SLOW, "no response in time"),
    ],
    ids=["silence", "status line", "header", "interim responses"],
)
async def test_one_deadline_for_all_however_the_bytes_drip(
    handler: Handler, reason: Reason, phase: str
) -> None:
    result = await probe_against(handler, timeout_s=0.5)
    assert result.reason is reason
    assert result.detail.startswith(phase)
    assert 0.5 <= result.duration_s < 1.5


def test_the_request_as_sent() -> None:
    check = http_check(80, path="/health?x=1", host="www.example.com", method="HEAD")
    assert format_request(check, LOOPBACK) == (
        b"HEAD /health?x=1 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: vc5py/%s\r\n"
        b"Accept: */*\r\nConnection: close\r\n\r\n" % __version__.encode()
    )


@pytest.mark.parametrize(
    ("vip", "type_", "port", "host"),
    [
        ("192.0.2.1", CheckType.HTTP, 80, b"192.0.2.1"),
        ("192.0.2.1", CheckType.HTTP, 443, b"192.0.2.1:443"),
        ("192.0.2.1", CheckType.HTTPS, 443, b"192.0.2.1"),
        ("2001:db8::1", CheckType.HTTP, 80, b"[2001:db8::1]"),
        ("2001:db8::1", CheckType.HTTP, 8080, b"[2001:db8::1]:8080"),
    ],
)
def test_host_defaults_to_the_vip(vip: str, type_: CheckType, port: int, host: bytes) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in format_request(check_of(type_, port), address(vip))


async def test_the_server_gets_that_request() -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(OK_RESPONSE)

    async with serving(handler) as server:
        check = http_check(server.port, path="/up")
        assert (await probe(LOOPBACK, check, 0, None)).ok
    assert requests == [format_request(check, LOOPBACK)]


async def test_further_headers_are_sent_and_take_the_place_of_our_own() -> None:
    headers = (("user-agent", "monitor/1"), ("X-Token", "sésame"))
    request = format_request(http_check(80, headers=headers), LOOPBACK)
    assert request == (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nConnection: close\r\n"
        b"user-agent: monitor/1\r\nX-Token: s\xc3\xa9same\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "says"), [("POST", True), ("PUT", True), ("GET", False), ("OPTIONS", False)]
)
def test_a_method_that_may_have_content_says_it_has_none(method: str, says: bool) -> None:
    request = format_request(http_check(80, method=method), LOOPBACK)
    assert (b"\r\nContent-Length: 0\r\n" in request) is says


# --- bodies ---

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_BODY = b'4;x="y"\r\nstat\r\n6\r\nus: up\r\n0\r\nTrailer: x\r\n\r\n'


@pytest.mark.parametrize(
    ("response", "then_close"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nstatus: up", False),
        (b"HTTP/1.1 200 OK\r\n\r\nstatus: up", True),
        (b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200\r\ncontent-length: 10\r\n\r\nstatus: up", False),
        (CHUNKED + CHUNKED_BODY, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nstatus: up", True),
    ],
    ids=["length", "end of stream", "after an interim response", "chunks", "another coding"],
)
@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({"body": "us: u"}, True),
        ({"body": "down"}, False),
        ({"body_regex": "^status: (up|ok)$"}, True),
        ({"body_regex": "^up"}, False),
        ({"body": "status", "body_regex": "down"}, False),
        ({"body": "status", "body_regex": "up"}, True),
    ],
)
async def test_the_body_must_match(
    response: bytes, then_close: bool, changes: dict[str, Any], ok: bool
) -> None:
    result = await probe_against(answers(response, then_close), **changes)
    assert (result.ok, result.reason) == (ok, Reason.OK if ok else Reason.UNEXPECTED_BODY)
    assert result.detail == "status 200" if ok else "is not in the only 10 bytes of the body" in result.detail


async def test_the_status_is_judged_before_the_body() -> None:
    unfinished = b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n"
    assert (await probe_against(answers(unfinished), body="x")).reason is Reason.UNEXPECTED_STATUS


@pytest.mark.parametrize(("size", "reason"), [(MAX_BODY, Reason.OK), (MAX_BODY + 1, Reason.UNEXPECTED_BODY)])
@pytest.mark.parametrize("framing", [b"Content-Length: %d\r\n", b""], ids=["length", "end of stream"])
async def test_no_more_of_the_body_is_looked_at_than_the_limit(
    size: int, reason: Reason, framing: bytes
) -> None:
    framed = framing % size if framing else b""
    response = b"HTTP/1.1 200 OK\r\n" + framed + b"\r\n" + b"x" * (size - 1) + b"y"
    result = await probe_against(answers(response, then_close=True), body="y")
    assert result.reason is reason
    assert reason is Reason.OK or result.detail == "the text is not in the first 65536 bytes of the body"


@pytest.mark.parametrize(
    ("handler", "reason", "detail"),
    [
        (
            answers(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30)),
            Reason.TOO_MUCH_DATA,
            f"announces a body of {1 << 30} bytes",
        ),
        (
            answers_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", bytes(4096)),
            Reason.UNEXPECTED_BODY,
            "the text is not in the first 65536 bytes of the body",
        ),
        (
            answers_endlessly(CHUNKED, b"1\r\nx\r\n" * 1000),
            Reason.TOO_MUCH_DATA,
            f"more than {MAX_BYTES_WITH_BODY} bytes",
        ),
        (
            answers_endlessly(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"", 0.01),
            Reason.TIMEOUT,
            "no body in time",
        ),
        (
            answers_endlessly(CHUNKED, b"1\r\nx\r\n", 0.01),
            Reason.TOO_SLOW,
            "no body in time",
        ),
        (
            answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nstatus", then_close=True),
            Reason.SHORT_READ,
            "closed after 6 bytes of the body",
        ),
        (answers(CHUNKED + b"4\r\nst", then_close=True), Reason.SHORT_READ, "closed after 2 bytes"),
        (answers(CHUNKED + b"4\r\nstat\r\n", then_close=True), Reason.SHORT_READ, "closed after 4 bytes"),
        (answers(CHUNKED + b"x\r\n"), Reason.BAD_CHUNK, "bad chunk size"),
        (
            answers(b"HTTP/1.1 204 No\r\n\r\nbody"),
            Reason.UNEXPECTED_BODY,
            "the text is not in the only 0 bytes",
        ),
    ],
    ids=[
        "gigabyte",
        "endless",
        "tiny chunks",
        "silence",
        "drip",
        "short",
        "in a chunk",
        "between",
        "bad",
        "none",
    ],
)
async def test_bad_bodies_have_their_own_reasons(handler: Handler, reason: Reason, detail: str) -> None:
    timeout_s = 0.5 if reason in (Reason.TIMEOUT, Reason.TOO_SLOW) else 5.0
    result = await probe_against(handler, body="up", expect=frozenset({200, 204}), timeout_s=timeout_s)
    assert (result.ok, result.reason) == (False, reason)
    assert result.detail.startswith(detail)


async def test_a_response_to_head_has_no_body() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    result = await probe_against(answers(response), method="HEAD", body="up")
    assert (result.reason, result.detail) == (
        Reason.UNEXPECTED_BODY,
        "the text is not in the only 0 bytes of the body",
    )


async def test_a_pattern_that_cannot_be_is_our_own_fault() -> None:
    result = await probe_against(answers(OK_RESPONSE), body_regex="(?=x)")
    assert (result.reason, result.detail) == (Reason.LOCAL, "body_regex: invalid perl operator: (?=")
