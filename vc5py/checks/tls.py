"""Byte streams over TLS for probes, with or without a look at the certificate.

Must not know: what is said over the stream. Invariant: where the certificate is verified, nothing is sent to
a peer whose certificate isn't good.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vc5py.checks.connection import RECV_SIZE, Stream, open_tcp
from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt

T = TypeVar("T")

_END_OF_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)  # without and with the peer's close_notify

# X509_V_ERR_* of <openssl/x509_vfy.h>
_REASON_OF_CODE = {
    2: Reason.CERTIFICATE_UNTRUSTED,  # unable to get issuer certificate
    10: Reason.CERTIFICATE_EXPIRED,
    18: Reason.CERTIFICATE_UNTRUSTED,  # self-signed
    19: Reason.CERTIFICATE_UNTRUSTED,  # self-signed in the chain
    20: Reason.CERTIFICATE_UNTRUSTED,  # unable to get local issuer certificate
    21: Reason.CERTIFICATE_UNTRUSTED,  # unable to verify the first certificate
    27: Reason.CERTIFICATE_UNTRUSTED,  # root not marked as trusted
    62: Reason.CERTIFICATE_NAME,
    64: Reason.CERTIFICATE_NAME,  # an address
}


@dataclass(frozen=True, slots=True)
class Trust:
    """How a peer is judged. `server_name` goes into SNI (RFC 6066 section 3) unless it is an address.

    `verify`: the certificate must be for `server_name`, by an authority of `ca_file` (None: the system's).
    """

    server_name: str | None
    verify: bool = False
    ca_file: str | None = None


class TlsStream:
    """TLS by memory BIOs over another stream."""

    def __init__(self, lower: Stream, context: ssl.SSLContext, server_name: str | None) -> None:
        self._lower = lower
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

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
            return await self._drive(functools.partial(self._tls.read, RECV_SIZE))
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
            except ssl.SSLCertVerificationError as error:
                reason = _REASON_OF_CODE.get(error.verify_code, Reason.CERTIFICATE_BAD)
                raise ProbeFailure(reason, error.verify_message) from None
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
async def open_tls(attempt: Attempt, trust: Trust) -> AsyncIterator[TlsStream]:
    """As `open_tcp`, with TLS on top."""
    context = _context(trust)
    async with open_tcp(attempt) as lower:
        attempt.enter("handshake")
        stream = TlsStream(lower, context, trust.server_name)
        await stream.handshake()
        yield stream


def _context(trust: Trust) -> ssl.SSLContext:
    if not trust.verify:
        return _trusting()
    try:
        return _verifying(trust.ca_file, _version_of(trust.ca_file))
    except OSError as error:  # an SSLError is one
        raise ProbeFailure(Reason.LOCAL, f"can't load the authorities: {error.strerror or error}") from None


def _version_of(ca_file: str | None) -> tuple[int, ...]:
    """Changes whenever the file does."""
    if ca_file is None:
        return ()
    status = Path(ca_file).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.cache
def _trusting() -> ssl.SSLContext:
    """Takes any certificate: that of a VIP rarely names the VIP."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.lru_cache(maxsize=256)
def _verifying(ca_file: str | None, _version: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
