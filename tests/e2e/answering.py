"""`python -m tests.e2e.answering ADDRESS...`: answers on these what nginx does not, until it is killed.

UDP port 7 sends back what it gets; port 53, UDP and TCP, answers every DNS question with one address record.
A socket for each address, so that replies come from the VIP.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from ipaddress import IPv4Address
from typing import cast

ECHO, DNS = 7, 53
ANSWER = IPv4Address("192.0.2.7")
_HEADER = 12


def dns_answer(query: bytes) -> bytes:
    """RFC 1035: the question again, and one A record for its name (a pointer to it)."""
    question = query[_HEADER : query.index(0, _HEADER) + 5]
    flags_and_counts = b"\x81\x80" + b"\0\1" + b"\0\1" + b"\0\0\0\0"
    record = b"\xc0\x0c" + b"\0\1\0\1" + b"\0\0\0\x3c" + b"\0\4" + ANSWER.packed
    return query[:2] + flags_and_counts + question + record


class Answering(asyncio.DatagramProtocol):
    def __init__(self, port: int) -> None:
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        self._transport.sendto(dns_answer(data) if self._port == DNS else data, addr)


async def by_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        answer = dns_answer(query)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # a check of the port alone
    finally:
        writer.close()


async def answer_on(addresses: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for address in addresses:
        for port in (ECHO, DNS):
            await loop.create_datagram_endpoint(partial(Answering, port), (address, port))
        await asyncio.start_server(by_tcp, address, DNS)
    print("ready", flush=True)
    await loop.create_future()


if __name__ == "__main__":
    asyncio.run(answer_on(sys.argv[1:]))
