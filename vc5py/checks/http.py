"""The http check: one request, and a final response whose status code is expected.

Must not know: how the stream gets to the real, deadlines. Never follows a redirect: where a server points to
is not for a balancer to visit. Reads to the end of the header section and hangs up; a body is never read.
"""

from __future__ import annotations

from vc5py import __version__
from vc5py.checks.connection import Attempt, Stream, open_tcp
from vc5py.checks.http_response import ResponseHead, ResponseParser
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.model import Check, CheckType, IPAddress

MAX_BODY = 16 * 1024 * 1024
"""Bytes. Who announces more does not answer a health check, and each probe would have it start sending."""

_DEFAULT_PORT = {CheckType.HTTP: 80, CheckType.HTTPS: 443}


async def probe_http(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    async with open_tcp(attempt) as stream:
        return await exchange(stream, attempt, check)


async def exchange(stream: Stream, attempt: Attempt, check: Check) -> str:
    """One HTTP/1.1 request and response over an open stream; as `probe_http` otherwise."""
    attempt.phase = "request"
    await stream.send(format_request(check, attempt.vip))
    attempt.phase = "response"
    return _judge(await _read_head(stream), check)


def format_request(check: Check, vip: IPAddress) -> bytes:
    """The request, RFC 9112 section 3. Without a configured host, Host is the VIP, as from a client."""
    return (
        f"{check.method} {check.path} HTTP/1.1\r\n"
        f"Host: {check.host or _authority(vip, check)}\r\n"
        f"User-Agent: vc5py/{__version__}\r\n"
        "Accept: */*\r\n"
        "Connection: close\r\n"
        "\r\n"
    ).encode("ascii")


def _authority(vip: IPAddress, check: Check) -> str:
    host = str(vip) if vip.version == 4 else f"[{vip}]"
    return host if check.port == _DEFAULT_PORT.get(check.type) else f"{host}:{check.port}"


async def _read_head(stream: Stream) -> ResponseHead:
    parser = ResponseParser()
    while (head := parser.next_final()) is None:
        data = await stream.recv()
        if not data:
            raise ProbeFailure(Reason.SHORT_READ, f"closed after {parser.consumed} bytes")
        parser.feed(data)
    return head


def _judge(head: ResponseHead, check: Check) -> str:
    if head.status not in check.expect:
        raise ProbeFailure(Reason.UNEXPECTED_STATUS, f"status {head.status}")
    length = head.content_length
    if length is not None and length > MAX_BODY and check.method != "HEAD":
        raise ProbeFailure(Reason.TOO_MUCH_DATA, f"announces a body of {length} bytes")
    return f"status {head.status}"
