"""Byte streams over TCP for probes.

Must not know: what is said over the stream, and what a failure means to anyone. Reports failures by raising
`ProbeFailure` or `OSError`; has no clock: the caller puts one deadline around the whole probe.

Invariants: at most `max_bytes` are ever read from a peer. The socket is closed however the probe ends, and
with a RST: no TIME_WAIT is left behind by thousands of probes a second, and no FIN handshake goes on after
the socket, and with it the mark, is gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt, make_socket

RECV_SIZE = 16 * 1024
_LINGER_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class Stream(Protocol):
    async def send(self, data: bytes) -> None:
        """Sends all of `data`."""

    async def recv(self) -> bytes:
        """Some bytes as they come, at least one; b"" at the end of the stream."""


class TcpStream:
    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._attempt = attempt

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def recv(self) -> bytes:
        attempt = self._attempt
        if attempt.received >= attempt.max_bytes:
            raise ProbeFailure(Reason.TOO_MUCH_DATA, f"more than {attempt.max_bytes} bytes")
        room = attempt.max_bytes - attempt.received
        data = await self._loop.sock_recv(self._sock, min(RECV_SIZE, room))
        attempt.received += len(data)
        return data


@asynccontextmanager
async def open_tcp(attempt: Attempt) -> AsyncIterator[TcpStream]:
    """Connects to the VIP; closes on leaving, whatever the reason."""
    sock = make_socket(attempt, socket.SOCK_STREAM)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (attempt.address, attempt.port))
        yield TcpStream(sock, attempt)
    finally:
        _close(sock)


def _close(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    finally:
        sock.close()
