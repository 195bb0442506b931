"""Byte streams for probes: TCP on a raw non-blocking socket, and TLS over that.

Must not know: what is said over the stream, and what a failure means to anyone. Reports failures by raising
`ProbeFailure` or `OSError`; has no clock: the caller puts one deadline around the whole probe.

Invariants: a stream connects to the VIP, never to the real; `SO_MARK`, set before the SYN leaves, steers
every packet of it. At most `max_bytes` are ever read from a peer. The socket is closed however the probe
ends, and with a RST: no TIME_WAIT is left behind by thousands of probes a second, and no FIN handshake goes
on after the socket, and with it the mark, is gone.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from vc5py.checks.result import ProbeFailure, Reason
from vc5py.model import IPAddress

T = TypeVar("T")

MAX_BYTES = 64 * 1024
_RECV_SIZE = 16 * 1024
_LINGER_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; the socket module names it only from Python 3.12 on
_END_OF_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)  # without and with the peer's close_notify


class Stream(Protocol):
    async def send(self, data: bytes) -> None:
        """Sends all of `data`."""

    async def recv(self) -> bytes:
        """Some bytes as they come, at least one; b"" at the end of the stream."""


@dataclass(slots=True)
class Attempt:
    """Where one probe goes, and how far it has come (for the report if the deadline strikes).

    `mark` 0 is "unmarked". `source` is ignored where it is of another address family than `vip`.
    """

    vip: IPAddress
    port: int
    mark: int
    source: IPAddress | None
    max_bytes: int = MAX_BYTES
    phase: str = field(default="connect", init=False)
    received: int = field(default=0, init=False)


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
        data = await self._loop.sock_recv(self._sock, min(_RECV_SIZE, room))
        attempt.received += len(data)
        return data


class TlsStream:
    """TLS by memory BIOs over another stream. Verifies nothing: a VIP's certificate rarely names the VIP."""

    def __init__(self, lower: Stream, server_name: str | None) -> None:
        self._lower = lower
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _tls_context().wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    async def handshake(self) -> None:
        try:
            await self._drive(self._tls.do_handshake)
        except _END_OF_TLS:
            raise ProbeFailure(Reason.TLS_FAILURE, "closed during the handshake") from None

    async def send(self, data: bytes) -> None:
        try:
            await self._drive(functools.partial(self._tls.write, data))
        except _END_OF_TLS:
            raise ProbeFailure(Reason.TLS_FAILURE, "closed before the request") from None

    async def recv(self) -> bytes:
        try:
            return await self._drive(functools.partial(self._tls.read, _RECV_SIZE))
        except _END_OF_TLS:
            return b""

    async def _drive(self, operation: Callable[[], T]) -> T:
        """Repeats `operation` with the bytes it wants. The ends of the stream are the caller's to explain."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except _END_OF_TLS:
                raise
            except ssl.SSLError as error:
                raise ProbeFailure(Reason.TLS_FAILURE, error.reason or str(error)) from None
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._lower.send(self._outgoing.read())

    async def _fill(self) -> None:
        data = await self._lower.recv()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


@asynccontextmanager
async def open_tcp(attempt: Attempt) -> AsyncIterator[TcpStream]:
    """Connects to the VIP; closes on leaving, whatever the reason."""
    sock = _make_socket(attempt)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (str(attempt.vip), attempt.port))
        yield TcpStream(sock, attempt)
    finally:
        _close(sock)


@asynccontextmanager
async def open_tls(attempt: Attempt, server_name: str | None) -> AsyncIterator[TlsStream]:
    """As `open_tcp`, with TLS on top. `server_name` is for SNI (RFC 6066 section 3)."""
    async with open_tcp(attempt) as lower:
        attempt.phase = "handshake"
        stream = TlsStream(lower, server_name)
        await stream.handshake()
        yield stream


def _make_socket(attempt: Attempt) -> socket.socket:
    family = socket.AF_INET if attempt.vip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _set_options(sock, attempt)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_options(sock: socket.socket, attempt: Attempt) -> None:
    if attempt.mark:  # 0 is what a socket has anyway, and setting it takes a privilege
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, attempt.mark)
    if attempt.source is not None and attempt.source.version == attempt.vip.version:
        # Choose the port on connecting, by the whole 4-tuple: else all probes share one range of ports.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((str(attempt.source), 0))


def _close(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    finally:
        sock.close()


@functools.cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
