"""The dns check: a question by UDP or TCP is answered with the expected code and, where asked, answer.

Must not know: the form of DNS messages, marks, deadlines. A truncated response by UDP is not asked for again
by TCP: the code is known, and whether TCP works is another check.
"""

from __future__ import annotations

import random

from vc5py.checks.connection import TcpStream, open_tcp
from vc5py.checks.datagram import exchange_datagrams
from vc5py.checks.dns_message import Response, canonical, parse_response, query
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt
from vc5py.model import Check, DnsQuestion, Protocol

_MAX_STREAM = 2 + 65_535
_ids = random.SystemRandom()


async def probe_dns(attempt: Attempt, check: Check) -> str:
    """Returns the detail of a success; raises `ProbeFailure` or `OSError` otherwise."""
    question = check.detail
    assert isinstance(question, DnsQuestion)
    id_ = _ids.getrandbits(16)
    message = query(id_, question.name, question.record)
    if question.transport is Protocol.TCP:
        reply = await _ask_by_tcp(attempt, message)
    else:
        reply = await exchange_datagrams(attempt, message)
    return _judge(parse_response(reply, id_, question.name, question.record), question)


async def _ask_by_tcp(attempt: Attempt, message: bytes) -> bytes:
    """RFC 1035 section 4.2.2: each message after its length in two bytes."""
    attempt.max_bytes = _MAX_STREAM
    async with open_tcp(attempt) as stream:
        attempt.enter("reply")
        await stream.send(len(message).to_bytes(2, "big") + message)
        received = bytearray()
        await _read(stream, received, 2)
        size = 2 + int.from_bytes(received[:2], "big")
        await _read(stream, received, size)
        return bytes(received[2:size])


async def _read(stream: TcpStream, received: bytearray, size: int) -> None:
    """Reads on until there are `size` bytes at least."""
    while len(received) < size:
        data = await stream.recv()
        if not data:
            raise ProbeFailure(Reason.SHORT_READ, f"closed after {len(received)} bytes")
        received += data


def _judge(response: Response, question: DnsQuestion) -> str:
    if response.rcode != question.rcode:
        raise ProbeFailure(Reason.UNEXPECTED_RCODE, response.rcode)
    if question.answer is not None and canonical(question.record, question.answer) not in response.answers:
        if response.truncated:
            raise ProbeFailure(Reason.TRUNCATED, f"truncated after {len(response.answers)} answers")
        first = f", the first is {response.answers[0][:100]!r}" if response.answers else ""
        raise ProbeFailure(Reason.UNEXPECTED_ANSWER, f"{len(response.answers)} answers{first}")
    return f"{response.rcode}, {len(response.answers)} answers"
