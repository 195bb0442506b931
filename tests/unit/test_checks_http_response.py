"""The response parser: what it takes and refuses, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.checks.http_response import MAX_HEADER, ResponseHead, ResponseParser
from vc5py.checks.result import ProbeFailure, Reason


def parse(*pieces: bytes) -> ResponseHead | None:
    parser = ResponseParser()
    for piece in pieces:
        parser.feed(piece)
        if (head := parser.next_final()) is not None:
            return head
    return None


@pytest.mark.parametrize(
    ("response", "head"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ResponseHead(200, None)),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", ResponseHead(404, None)),
        (b"HTTP/1.1 204 \r\n\r\n", ResponseHead(204, None)),
        (b"HTTP/1.1 204\r\n\r\n", ResponseHead(204, None)),
        (b"HTTP/1.1 200 d\xe9j\xe0 vu\r\nServer: x\r\n\r\nbody", ResponseHead(200, None)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", ResponseHead(200, 12)),
        (b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length:7 \r\nC: d\r\n\r\n", ResponseHead(200, 7)),
        (b"HTTP/1.1 200 OK\r\nX-Content-Length: 7\r\n\r\n", ResponseHead(200, None)),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nspace in: name\r\n\r\n", ResponseHead(200, None)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n", ResponseHead(503, None)),
        (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\n\r\n", ResponseHead(200, None)),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ResponseHead(101, None)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseHead(200, None, True)),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding:gzip ,\tChunked \r\n\r\n", ResponseHead(200, None, True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", ResponseHead(200, None)),
        (
            b"HTTP/1.1 200 A\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            ResponseHead(200, None, True),
        ),
        (
            b"HTTP/1.1 200 A\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
            ResponseHead(200, None, True),
        ),
    ],
)
def test_accepts_whole_and_byte_by_byte(response: bytes, head: ResponseHead) -> None:
    assert parse(response) == head
    assert parse(*(bytes([byte]) for byte in response)) == head


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"X",
        b"\r\n",
        b"\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 200 OK\n",
        b"HTTP/1.1 100 Continue\r\n\r\ngarbage",
    ],
)
def test_refuses_a_bad_status_line_at_once(response: bytes) -> None:
    with pytest.raises(ProbeFailure) as caught:
        parse(response)
    assert caught.value.reason is Reason.BAD_STATUS_LINE


@pytest.mark.parametrize("response", [b"", b"HTT", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\r"])
def test_waits_for_the_rest(response: bytes) -> None:
    assert parse(response) is None


def test_the_search_for_the_end_begins_anew_after_an_interim_response() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 100
    assert parse(hints, b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n") == ResponseHead(200, None)


def test_the_detail_is_short_and_printable() -> None:
    with pytest.raises(ProbeFailure) as caught:
        parse(b"\x1b[31m" + b"a" * 1000)
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 100


def test_header_of_exactly_the_limit_passes_and_one_byte_more_fails() -> None:
    start = b"HTTP/1.1 200 OK\r\nA: "
    fitting = start + b"a" * (MAX_HEADER - len(start))
    assert parse(fitting + b"\r\n\r\n") == ResponseHead(200, None)
    with pytest.raises(ProbeFailure) as caught:
        parse(fitting + b"a\r\n\r\n")
    assert caught.value.reason is Reason.HEADER_TOO_LARGE


def test_header_that_never_ends_is_refused_while_incomplete() -> None:
    with pytest.raises(ProbeFailure) as caught:
        parse(b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n" * 1000] * 3)
    assert caught.value.reason is Reason.HEADER_TOO_LARGE


@given(st.binary(max_size=80), st.booleans(), st.lists(st.integers(0, 100), max_size=5))
def test_any_bytes_give_a_head_or_a_wait_or_a_reason(data: bytes, prefixed: bool, cuts: list[int]) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + data if prefixed else data
    edges = [0, *sorted(cuts), len(data)]
    parser = ResponseParser()
    try:
        for start, end in itertools.pairwise(edges):
            parser.feed(data[start:end])
            parser.next_final()
    except ProbeFailure as failure:
        assert failure.reason is Reason.BAD_STATUS_LINE
        assert not prefixed or b"\r\n\r\n" in data
