"""The body reader: framings, however they are cut, and what isn't one; then mutations of whole responses."""

from __future__ import annotations

import itertools
import random

import pytest

from vc5py.checks.http_body import MAX_CHUNK_LINE, BodyReader
from vc5py.checks.http_response import MAX_HEADER, ResponseHead, ResponseParser
from vc5py.checks.result import ProbeFailure, Reason

CHUNKED = ResponseHead(200, None, True)
LIMIT = 64


def read(head: ResponseHead, *pieces: bytes) -> BodyReader:
    body = BodyReader(head, LIMIT)
    for piece in pieces:
        body.feed(piece)
    return body


def reason_of(head: ResponseHead, *pieces: bytes) -> Reason:
    with pytest.raises(ProbeFailure) as caught:
        read(head, *pieces).end()
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 200
    return caught.value.reason


@pytest.mark.parametrize(
    ("head", "data", "content"),
    [
        (ResponseHead(200, 0), b"more", b""),
        (ResponseHead(204, None), b"more", b""),
        (ResponseHead(304, 10), b"more", b""),
        (ResponseHead(200, 5), b"hello and more", b"hello"),
        (ResponseHead(200, LIMIT), b"x" * LIMIT, b"x" * LIMIT),
        (CHUNKED, b"0\r\n\r\n", b""),
        (CHUNKED, b"5\r\nhello\r\n0\r\n\r\nmore", b"hello"),
        (CHUNKED, b"0005 \t;a=b;c\r\nhello\r\n00\r\n", b"hello"),
        (CHUNKED, b"A\r\n0123456789\r\n9\r\n\r\n34567\r\n\r\n0\r\n", b"0123456789\r\n34567\r\n"),
        (CHUNKED, b"3;" + b"x" * (MAX_CHUNK_LINE - 2) + b"\r\nabc\r\n0\r\n", b"abc"),
    ],
)
def test_whole_and_byte_by_byte(head: ResponseHead, data: bytes, content: bytes) -> None:
    for pieces in ([data], [bytes([byte]) for byte in data]):
        body = read(head, *pieces)
        assert (bytes(body.content), body.complete, body.cut) == (content, True, False)
        body.end()


@pytest.mark.parametrize("head", [ResponseHead(200, None), ResponseHead(200, 1000), CHUNKED])
def test_no_more_is_kept_than_the_limit(head: ResponseHead) -> None:
    data = b"3e8\r\n" * head.chunked + b"x" * 1000
    for pieces in ([data], [bytes([byte]) for byte in data]):
        body = read(head, *pieces)
        assert (bytes(body.content), body.complete, body.cut) == (b"x" * LIMIT, True, True)


def test_the_limit_holds_over_several_chunks() -> None:
    assert (
        bytes(read(CHUNKED, b"28\r\n" + b"x" * 40 + b"\r\n28\r\n" + b"y" * 40).content)
        == b"x" * 40 + b"y" * 24
    )


def test_without_framing_the_stream_ends_the_body() -> None:
    body = read(ResponseHead(200, None), b"hello")
    assert not body.complete
    body.end()
    assert (bytes(body.content), body.complete, body.cut) == (b"hello", True, False)


def test_head_has_no_body() -> None:
    assert BodyReader(ResponseHead(200, 10), LIMIT, head_only=True).complete
    assert BodyReader(CHUNKED, LIMIT, head_only=True).complete


@pytest.mark.parametrize(
    ("head", "data"),
    [
        (ResponseHead(200, 5), b"hell"),
        (CHUNKED, b""),
        (CHUNKED, b"5"),
        (CHUNKED, b"5\r"),
        (CHUNKED, b"5\r\nhell"),
        (CHUNKED, b"5\r\nhello"),
        (CHUNKED, b"5\r\nhello\r"),
        (CHUNKED, b"5\r\nhello\r\n0"),
    ],
)
def test_an_early_end(head: ResponseHead, data: bytes) -> None:
    assert reason_of(head, data) is Reason.SHORT_READ


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-5\r\n",
        b"0x5\r\n",
        b" 5\r\n",
        b"5 a\r\n",
        b"5\n\r\n",
        b"5;\x00\r\n",
        b"1000000000000000\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\rX",
        b"5\r\nhello0\r\n",
        b"3;" + b"x" * (MAX_CHUNK_LINE - 1) + b"\r\n",
        b"\x1b" * 2000,
    ],
)
def test_what_is_not_a_chunk_is_refused(data: bytes) -> None:
    assert reason_of(CHUNKED, data) is Reason.BAD_CHUNK
    assert reason_of(CHUNKED, *(bytes([byte]) for byte in data)) is Reason.BAD_CHUNK


# --- mutations ---

RESPONSES = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.0 404\r\n\r\nnot here",
    b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 H\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\na\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
)
WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b"HTTP/1.1 ",
    b"chunked",
    b"Content-Length: 99999999999\r\n",
    b"0",
    b"\x00",
    b"\xff",
    b" ",
)
REASONS = {Reason.BAD_STATUS_LINE, Reason.HEADER_TOO_LARGE, Reason.BAD_CHUNK, Reason.SHORT_READ}


def mutated(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(RESPONSES))
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 0, 1, 1, 8)))
        match rng.randrange(4):
            case 0:
                data[start:end] = rng.choice(WORDS) * rng.choice((1, 1, 1, 300, 5000))
            case 1:
                data[start:end] = rng.randbytes(rng.randrange(4))
            case 2:
                del data[start:end]
            case _:
                data[start:start] = data[max(0, start - 40) : start]
    return bytes(data)


def outcome(data: bytes, cuts: list[int]) -> tuple[object, ...]:
    """What came of a response that arrives cut at these places: as a probe reads it."""
    parser, body = ResponseParser(), None
    edges = [0, *cuts, len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            if body is not None:
                body.feed(data[start:end])
                continue
            parser.feed(data[start:end])
            if (head := parser.next_final()) is not None:
                body = BodyReader(head, LIMIT)
                body.feed(parser.rest)
        if body is None:
            return (None,)
        body.end()
    except ProbeFailure as failure:
        assert failure.reason in REASONS
        assert failure.detail.isprintable()
        return (failure.reason,)
    assert len(body.content) <= LIMIT
    return (bytes(body.content), body.cut)


def test_mutated_responses_come_out_the_same_however_they_are_cut() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    seen = set()
    for _ in range(20_000):
        data = mutated(rng)
        whole = outcome(data, [])
        seen.add(whole[0] if isinstance(whole[0], Reason) else type(whole[0]))
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(3))
        pieces = outcome(data, cuts)
        if Reason.HEADER_TOO_LARGE not in (*whole, *pieces) or len(data) <= MAX_HEADER:
            assert pieces == whole, (seed, data, cuts)
    assert seen >= {Reason.BAD_STATUS_LINE, Reason.BAD_CHUNK, Reason.SHORT_READ, bytes, type(None)}
