"""Probes against real servers on loopback, well-behaved and hostile, and what they put on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from vc5py import __version__
from vc5py.checks import ProbeResult, Reason, probe
from vc5py.checks.connection import MAX_BYTES, Attempt, open_tcp
from vc5py.checks.http import MAX_BODY, format_request
from vc5py.checks.https import server_name
from vc5py.checks.result import reason_of
from vc5py.model import Check, CheckType, IPAddress

LOOPBACK = IPv4Address("127.0.0.1")
CLONE_NEWNET = 0x40000000
OK_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """`endings` tells of each connection how the client ended it: "reset" or "end"."""

    port: int
    peers: list[str] = field(default_factory=list)
    endings: asyncio.Queue[str] = field(default_factory=asyncio.Queue)


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    tasks: set[asyncio.Task[None]] = set()
    server = Server(0)

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.peers.append(writer.get_extra_info("peername")[0])
        try:
            await handler(reader, writer)
            ending = "end" if await reader.read() == b"" else "more"
            server.endings.put_nowait(ending)
        except ConnectionError:
            server.endings.put_nowait("reset")
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(attend, host, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


def http_check(port: int, **changes: Any) -> Check:
    return replace(Check("check", CheckType.HTTP, port, timeout_s=5.0), **changes)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answers(data: bytes, then_close: bool = False) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        if then_close:
            writer.write_eof()

    return handler


def answers_endlessly(start: bytes, more: bytes, pause_s: float = 0.0) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(start)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return handler


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def probe_against(handler: Handler, **changes: Any) -> ProbeResult:
    async with serving(handler) as server:
        return await probe(LOOPBACK, http_check(server.port, **changes), 0, None)


# --- http ---


async def test_expected_status_is_ok() -> None:
    result = await probe_against(answers(OK_RESPONSE))
    assert (result.ok, result.reason, result.detail) == (True, Reason.OK, "status 200")
    assert 0 < result.duration_s < 5


@pytest.mark.parametrize(
    ("response", "reason", "detail"),
    [
        (b"HTTP/1.1 500 No\r\n\r\n", Reason.UNEXPECTED_STATUS, "status 500"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", Reason.UNEXPECTED_STATUS, "status 301"),
        (b"220 mail ESMTP\r\n", Reason.BAD_STATUS_LINE, "bad status line '220 mail ESMTP\\r'"),
        (b"\x16\x03\x01\x02", Reason.BAD_STATUS_LINE, "bad status line '\\x16\\x03\\x01\\x02'"),
        (b"", Reason.SHORT_READ, "closed after 0 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", Reason.SHORT_READ, "closed after 23 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30),
            Reason.TOO_MUCH_DATA,
            f"announces a body of {1 << 30} bytes",
        ),
    ],
)
async def test_bad_answers_have_their_own_reasons(response: bytes, reason: Reason, detail: str) -> None:
    result = await probe_against(answers(response, then_close=True))
    assert (result.ok, result.reason, result.detail) == (False, reason, detail)


async def test_interim_responses_are_skipped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert (await probe_against(answers(interim + OK_RESPONSE))).ok


async def test_a_redirect_is_just_a_status_and_never_followed() -> None:
    async with serving(answers(OK_RESPONSE)) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/".encode()
        redirect = answers(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n")
        assert (await probe_against(redirect)).reason is Reason.UNEXPECTED_STATUS
        assert (await probe_against(redirect, expect=frozenset({200, 302}))).ok
        assert elsewhere.peers == []


async def test_endless_header_is_cut_off() -> None:
    result = await probe_against(answers_endlessly(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100))
    assert (result.ok, result.reason) == (False, Reason.HEADER_TOO_LARGE)


async def test_endless_interim_responses_meet_the_byte_cap() -> None:
    result = await probe_against(answers_endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100))
    assert (result.reason, result.detail) == (Reason.TOO_MUCH_DATA, f"more than {MAX_BYTES} bytes")


async def test_an_endless_body_is_never_read() -> None:
    async with serving(answers_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536))) as server:
        result = await probe(LOOPBACK, http_check(server.port), 0, None)
        assert (result.ok, await server.endings.get()) == (True, "reset")


async def test_a_body_that_is_only_announced_is_fine_for_head() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
    assert (await probe_against(answers(response), method="HEAD")).ok
    assert (await probe_against(answers(response))).reason is Reason.TOO_MUCH_DATA


async def test_reset_instead_of_an_answer() -> None:
    assert (await probe_against(resets)).reason is Reason.RESET


@pytest.mark.parametrize(
    ("handler", "phase"),
    [
        (says_nothing, "no response in time, 0 bytes received"),
        (answers_endlessly(b"HTTP/1.1 200 ", b"x", 0.01), "no response in time"),
        (answers_endlessly(b"HTTP/1.1 200 OK\r\n", b"A", 0.01), "no response in time"),
        (answers_endlessly(b"", b"HTTP/1.1 100 C\r\n\r\n", 0.01), "no response in time"),
    ],
    ids=["silence", "status line", "header", "interim responses"],
)
async def test_one_deadline_for_all_however_the_bytes_drip(handler: Handler, phase: str) -> None:
    result = await probe_against(handler, timeout_s=0.15)
    assert result.reason is Reason.TIMEOUT
    assert result.detail.startswith(phase)
    assert 0.15 <= result.duration_s < 1.5


def test_the_request_as_sent() -> None:
    check = http_check(80, path="/health?x=1", host="www.example.com", method="HEAD")
    assert format_request(check, LOOPBACK) == (
        b"HEAD /health?x=1 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: vc5py/%s\r\n"
        b"Accept: */*\r\nConnection: close\r\n\r\n" % __version__.encode()
    )


@pytest.mark.parametrize(
    ("vip", "type_", "port", "host"),
    [
        ("192.0.2.1", CheckType.HTTP, 80, b"192.0.2.1"),
        ("192.0.2.1", CheckType.HTTP, 443, b"192.0.2.1:443"),
        ("192.0.2.1", CheckType.HTTPS, 443, b"192.0.2.1"),
        ("2001:db8::1", CheckType.HTTP, 80, b"[2001:db8::1]"),
        ("2001:db8::1", CheckType.HTTP, 8080, b"[2001:db8::1]:8080"),
    ],
)
def test_host_defaults_to_the_vip(vip: str, type_: CheckType, port: int, host: bytes) -> None:
    address: IPAddress = IPv6Address(vip) if ":" in vip else IPv4Address(vip)
    assert b"\r\nHost: " + host + b"\r\n" in format_request(http_check(port, type=type_), address)


async def test_the_server_gets_that_request() -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(OK_RESPONSE)

    async with serving(handler) as server:
        check = http_check(server.port, path="/up")
        assert (await probe(LOOPBACK, check, 0, None)).ok
    assert requests == [format_request(check, LOOPBACK)]


# --- https ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    files = ["-subj", "/CN=nobody.invalid", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_https_takes_a_self_signed_certificate_and_sends_the_name(
    server_tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    names: list[str | None] = []
    server_tls.minimum_version = server_tls.maximum_version = version
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with serving(answers(OK_RESPONSE), server_tls) as server:
        named = http_check(server.port, type=CheckType.HTTPS, host="www.example.com:8443")
        assert (await probe(LOOPBACK, named, 0, None)).detail == "status 200"
        assert (await probe(LOOPBACK, replace(named, host=None), 0, None)).ok
    assert names == ["www.example.com", None]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (None, None),
        ("", None),
        ("www.example.com", "www.example.com"),
        ("www.example.com.:443", "www.example.com"),
        ("192.0.2.1", None),
        ("192.0.2.1:443", None),
        ("[2001:db8::1]:443", None),
        ("2001:db8::1", None),
    ],
)
def test_server_name_is_a_name_without_a_port(host: str | None, name: str | None) -> None:
    assert server_name(host) == name


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write_eof()


async def talk_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(b"HTTP/1.1 400 Plain request to a TLS port\r\n\r\n")


@pytest.mark.parametrize("handler", [close_at_once, talk_plainly])
async def test_https_to_what_does_not_speak_tls(handler: Handler) -> None:
    result = await probe_against(handler, type=CheckType.HTTPS)
    assert (result.ok, result.reason) == (False, Reason.TLS_FAILURE)


async def test_https_to_a_server_that_wants_a_client_certificate(
    server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.load_verify_locations(certificate[0])
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(answers(OK_RESPONSE), server_tls) as server:
        result = await probe(LOOPBACK, http_check(server.port, type=CheckType.HTTPS), 0, None)
    assert result.reason is Reason.TLS_FAILURE


async def test_https_failures_within_the_session(server_tls: ssl.SSLContext) -> None:
    garbage, header = b"garbage\r\n", b"HTTP/1.1 200 OK\r\n"
    for handler, reason in [
        (answers(garbage), Reason.BAD_STATUS_LINE),
        (answers_endlessly(header, b"A: b\r\n" * 100), Reason.HEADER_TOO_LARGE),
        (resets, Reason.RESET),
    ]:
        async with serving(handler, server_tls) as server:
            result = await probe(LOOPBACK, http_check(server.port, type=CheckType.HTTPS), 0, None)
        assert (result.ok, result.reason) == (False, reason)


async def test_https_session_closed_before_the_answer(server_tls: ssl.SSLContext) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.close()

    async with serving(handler, server_tls) as server:
        result = await probe(LOOPBACK, http_check(server.port, type=CheckType.HTTPS), 0, None)
    assert result.reason is Reason.SHORT_READ


async def test_https_deadline_covers_a_dripping_handshake() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03")  # a ServerHello of 16 KiB begins
        while True:
            writer.write(b"\x00")
            await asyncio.sleep(0.01)

    result = await probe_against(handler, type=CheckType.HTTPS, timeout_s=0.15)
    assert result.detail.startswith("no handshake in time")
    assert 0.15 <= result.duration_s < 1.5


# --- tcp, and sockets in general ---


async def test_tcp_needs_no_more_than_a_handshake_and_leaves_with_a_reset() -> None:
    async with serving(says_nothing) as server:
        result = await probe(LOOPBACK, http_check(server.port, type=CheckType.TCP), 0, None)
        assert (result.ok, result.reason, result.detail) == (True, Reason.OK, "connected")
        assert await server.endings.get() == "reset"


async def test_ipv6() -> None:
    async with serving(answers(OK_RESPONSE), host="::1") as server:
        assert (await probe(IPv6Address("::1"), http_check(server.port), 0, LOOPBACK)).ok
        assert server.peers == ["::1"]


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("type_", list(CheckType))
async def test_refused(type_: CheckType) -> None:
    result = await probe(LOOPBACK, http_check(unused_port(), type=type_), 0, None)
    assert (result.ok, result.reason) == (False, Reason.REFUSED)
    assert result.detail == "connect: Connection refused"


async def test_connecting_is_within_the_deadline() -> None:
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # the backlog is full: the kernel drops further SYNs
        port = full.getsockname()[1]
        result = await probe(LOOPBACK, http_check(port, type=CheckType.TCP, timeout_s=0.1), 0, None)
    assert (result.reason, result.detail) == (Reason.TIMEOUT, "no connect in time, 0 bytes received")
    assert 0.1 <= result.duration_s < 1.5


async def test_the_source_address_is_used() -> None:
    async with serving(answers(OK_RESPONSE)) as server:
        assert (await probe(LOOPBACK, http_check(server.port), 0, IPv4Address("127.0.0.9"))).ok
        assert server.peers == ["127.0.0.9"]


async def test_a_source_address_we_do_not_have_is_our_own_fault() -> None:
    result = await probe(LOOPBACK, http_check(1), 0, IPv4Address("192.0.2.77"))
    assert (result.ok, result.reason) == (False, Reason.LOCAL)


async def test_no_descriptor_is_left_behind() -> None:
    """The kernel alone takes these connections, so that every descriptor is the probe's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        port = listener.getsockname()[1]
        before = descriptors()
        for type_ in CheckType:
            await probe(LOOPBACK, http_check(port, type=type_, timeout_s=0.02), 0, None)
            await probe(LOOPBACK, http_check(unused_port(), type=type_), 0, None)
            await probe(LOOPBACK, http_check(port, type=type_), 0, IPv4Address("192.0.2.77"))
        assert descriptors() == before


def descriptors() -> set[str]:
    return {f"{path.name} {path.readlink()}" for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


async def test_cancelling_a_probe_closes_its_socket() -> None:
    connected = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        connected.set()

    async with serving(handler) as server:
        task = asyncio.create_task(probe(LOOPBACK, http_check(server.port), 0, None), name="probe")
        await connected.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await server.endings.get() == "reset"


def test_an_error_no_network_can_cause_has_no_reason() -> None:
    assert reason_of(OSError("without a number")) is None
    assert reason_of(OSError(9, "bad descriptor")) is None
    assert reason_of(OSError(113, "no route")) is Reason.UNREACHABLE


# --- marks and routes, in a network of their own ---


def in_new_network(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` in a thread with a fresh network namespace, which goes when the thread does."""
    failures: list[BaseException] = []

    def thread() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed on to the test
            failures.append(error)

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_syn_itself_carries_the_mark(address: str) -> None:
    """The kernel copies the mark of a SYN to the accepted socket when told so: seen from the other end."""

    async def main() -> None:
        Path("/proc/sys/net/ipv4/tcp_fwmark_accept").write_text("1")
        marks: list[int] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            marks.append(writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
            await answers(OK_RESPONSE)(reader, writer)

        vip: IPAddress = IPv6Address(address) if ":" in address else IPv4Address(address)
        async with serving(handler, host=address) as server:
            for mark in (0x1234, 7, 0):
                assert (await probe(vip, http_check(server.port), mark, None)).ok
        assert marks == [0x1234, 7, 0]

    in_new_network(main)


def test_without_a_route_the_vip_is_unreachable() -> None:
    async def main() -> None:
        result = await probe(IPv4Address("192.0.2.1"), http_check(80), 1, None)
        assert (result.ok, result.reason) == (False, Reason.UNREACHABLE)
        assert result.detail == "connect: Network is unreachable"

    in_new_network(main)


def test_thousands_of_probes_leave_no_time_wait() -> None:
    async def main() -> None:
        async with serving(answers(OK_RESPONSE)) as server:
            for _ in range(20):
                assert (await probe(LOOPBACK, http_check(server.port), 0, None)).ok
        time_wait = "06"
        table = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        assert [line for line in table if line.split()[3] == time_wait] == []

    in_new_network(main)


async def test_the_byte_cap_is_exact() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1001)

    async with serving(handler) as server:
        attempt = Attempt(LOOPBACK, server.port, 0, None, max_bytes=1000)
        async with open_tcp(attempt) as stream:
            received = b""
            with pytest.raises(Exception, match="more than 1000 bytes"):
                while True:
                    received += await stream.recv()
    assert len(received) == attempt.received == 1000
