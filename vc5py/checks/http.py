"""The http check: one request, and a final response whose status code, and body where asked, is expected.

Must not know: how the stream gets to the real, deadlines. Never follows a redirect: where a server points to
is not for a balancer to visit. Reads to the end of the header section and hangs up; a body is read only where
the check looks at it, and no more than `MAX_BODY` bytes of it.
"""

from __future__ import annotations

from vc5py import __version__
from vc5py.checks.connection import Stream, open_tcp
from vc5py.checks.http_body import BodyReader
from vc5py.checks.http_response import ResponseHead, ResponseParser
from vc5py.checks.pattern import found
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt
from vc5py.model import Check, CheckType, HttpRequest, IPAddress

MAX_BODY = 64 * 1024
"""Bytes of the body that are looked at."""
MAX_BYTES_WITH_BODY = 3 * MAX_BODY
"""Bytes read of a response in all, where the body is looked at: header, framing and TLS included."""
MAX_ANNOUNCED = 16 * 1024 * 1024
"""Bytes. Who announces more does not answer a health check, and each probe would have it start sending."""

_DEFAULT_PORT = {CheckType.HTTP: 80, CheckType.HTTPS: 443}
_METHODS_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})  # RFC 9110 section 8.6


async def probe_http(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    prepare(attempt, check)
    async with open_tcp(attempt) as stream:
        return await exchange(stream, attempt, check)


def prepare(attempt: Attempt, check: Check) -> HttpRequest:
    """The check's request. Lets the attempt read more if the body is looked at."""
    assert isinstance(check.detail, HttpRequest)
    if _wants_body(check.detail):
        attempt.max_bytes = MAX_BYTES_WITH_BODY
    return check.detail


async def exchange(stream: Stream, attempt: Attempt, check: Check) -> str:
    """One HTTP/1.1 request and response over an open stream; as `probe_http` otherwise."""
    request = prepare(attempt, check)
    attempt.enter("request")
    await stream.send(format_request(check, attempt.vip))
    attempt.enter("response")
    parser = ResponseParser()
    head = await _read_head(stream, parser)
    _judge_head(head, request)
    if _wants_body(request):
        attempt.enter("body")
        await _judge_body(await _read_body(stream, head, parser.rest, request), request)
    return f"status {head.status}"


def format_request(check: Check, vip: IPAddress) -> bytes:
    """The request, RFC 9112 section 3. Without a configured host, Host is the VIP, as from a client."""
    request = check.detail
    assert isinstance(request, HttpRequest)
    fields = {
        "Host": request.host or _authority(vip, check),
        "User-Agent": f"vc5py/{__version__}",
        "Accept": "*/*",
        "Connection": "close",
    }
    if request.method in _METHODS_WITH_CONTENT:
        fields["Content-Length"] = "0"
    if request.headers:
        given = {name.lower() for name, _ in request.headers}
        kept = [(name, value) for name, value in fields.items() if name.lower() not in given]
        lines = [f"{name}: {value}\r\n" for name, value in (*kept, *request.headers)]
    else:
        lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    return f"{request.method} {request.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def _wants_body(request: HttpRequest) -> bool:
    return request.body is not None or request.body_regex is not None


def _authority(vip: IPAddress, check: Check) -> str:
    host = str(vip) if vip.version == 4 else f"[{vip}]"
    return host if check.port == _DEFAULT_PORT.get(check.type) else f"{host}:{check.port}"


async def _read_head(stream: Stream, parser: ResponseParser) -> ResponseHead:
    while (head := parser.next_final()) is None:
        data = await stream.recv()
        if not data:
            raise ProbeFailure(Reason.SHORT_READ, f"closed after {parser.consumed} bytes")
        parser.feed(data)
    return head


async def _read_body(stream: Stream, head: ResponseHead, rest: bytes, request: HttpRequest) -> BodyReader:
    body = BodyReader(head, MAX_BODY, head_only=request.method == "HEAD")
    body.feed(rest)
    while not body.complete:
        data = await stream.recv()
        if data:
            body.feed(data)
        else:
            body.end()
    return body


def _judge_head(head: ResponseHead, request: HttpRequest) -> None:
    if head.status not in request.expect:
        reason = Reason.REDIRECT if 300 <= head.status < 400 else Reason.UNEXPECTED_STATUS
        raise ProbeFailure(reason, f"status {head.status}")
    length = head.content_length
    if length is not None and length > MAX_ANNOUNCED and request.method != "HEAD":
        raise ProbeFailure(Reason.TOO_MUCH_DATA, f"announces a body of {length} bytes")


async def _judge_body(body: BodyReader, request: HttpRequest) -> None:
    content = bytes(body.content)
    where = f"the {'first' if body.cut else 'only'} {len(content)} bytes of the body"
    if request.body is not None and request.body.encode() not in content:
        raise ProbeFailure(Reason.UNEXPECTED_BODY, f"the text is not in {where}")
    if request.body_regex is None:
        return
    try:
        matches = await found(request.body_regex, content)
    except ValueError as error:
        raise ProbeFailure(Reason.LOCAL, f"body_regex: {error}") from None
    if not matches:
        raise ProbeFailure(Reason.UNEXPECTED_BODY, f"the pattern is not in {where}")
