"""A router for tests of the speaker: takes every session and every route, and knows when it heard what."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address

AS_NUMBER, PORT = 65001, 1790
_MARKER = b"\xff" * 16
_OPEN, _UPDATE, _KEEPALIVE = 1, 2, 4
_HEADER, _HOST = 19, 5  # bytes of a message's header, and of a prefix of 32 bits
_HOLD_S = 90
_MARK = b"\xff\xff\x00\x00"  # 65535:0, graceful shutdown (RFC 8326)


@dataclass
class Router:
    """So many `sessions` have begun, and `ended`. `routes` are those it has now, `marked` all that ever came
    marked for graceful shutdown.
    """

    router_id: IPv4Address
    sessions: int = 0
    ended: int = 0
    routes: set[IPv4Address] = field(default_factory=set)
    marked: set[IPv4Address] = field(default_factory=set)
    last_mark_at: float = 0.0
    first_withdrawal_at: float = 0.0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def hang_up(self) -> None:
        """End all sessions, without a word."""
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self.writers.add(writer)
        try:
            writer.write(self._open() + _message(_KEEPALIVE))
            while True:
                header = await reader.readexactly(_HEADER)
                length, kind = struct.unpack("!HB", header[16:])
                body = await reader.readexactly(length - _HEADER)
                if kind == _UPDATE:
                    self._update(body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended += 1
            self.writers.discard(writer)
            writer.close()

    def _open(self) -> bytes:
        """With the capabilities IPv4 unicast and four-octet AS numbers."""
        able = b"\x02\x06\x01\x04\x00\x01\x00\x01" + b"\x02\x06\x41\x04" + struct.pack("!I", AS_NUMBER)
        fixed = struct.pack("!BHH4sB", 4, AS_NUMBER, _HOLD_S, self.router_id.packed, len(able))
        return _message(_OPEN, fixed + able)

    def _update(self, body: bytes) -> None:
        withdrawn, rest = _sized(body)
        attributes, announced = _sized(rest)
        if withdrawn:
            self.routes -= _hosts(withdrawn)
            self.first_withdrawal_at = self.first_withdrawal_at or time.monotonic()
        if announced:
            self.routes |= _hosts(announced)
            if _MARK in attributes:
                self.marked |= _hosts(announced)
                self.last_mark_at = time.monotonic()


@asynccontextmanager
async def router(host: str) -> AsyncIterator[Router]:
    """One that listens on this address, at PORT."""
    one = Router(IPv4Address("192.0.2.250"))
    server = await asyncio.start_server(one.serve, host, PORT)
    try:
        yield one
    finally:
        server.close()


def _message(kind: int, body: bytes = b"") -> bytes:
    return _MARKER + struct.pack("!HB", _HEADER + len(body), kind) + body


def _sized(data: bytes) -> tuple[bytes, bytes]:
    """What a length of two bytes is of, and the rest."""
    (length,) = struct.unpack("!H", data[:2])
    return data[2 : 2 + length], data[2 + length :]


def _hosts(prefixes: bytes) -> set[IPv4Address]:
    return {IPv4Address(prefixes[at + 1 : at + _HOST]) for at in range(0, len(prefixes), _HOST)}
