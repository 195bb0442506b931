"""What the tests of probes share: servers on loopback, good and hostile ones, and networks of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from vc5py.checks import ProbeResult, probe
from vc5py.model import Check, CheckType, DnsQuestion, HttpRequest, IPAddress, UdpExchange

LOOPBACK = IPv4Address("127.0.0.1")
CLONE_NEWNET = 0x40000000
OK_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """`peers`: who came, `last_port`: from which port (UDP). `endings` tells of each connection how the
    client ended it: "reset" or "end".
    """

    port: int
    peers: list[str] = field(default_factory=list)
    last_port: int = 0
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


def check_of(kind: CheckType, port: int, **changes: Any) -> Check:
    """A check of that type. Fields of the check's detail can be given like those of the check itself."""
    of_check = {f.name for f in fields(Check)} - {"name"}
    own = {name: value for name, value in changes.items() if name in of_check}
    detail = {name: value for name, value in changes.items() if name not in of_check}
    make = {
        CheckType.HTTP: HttpRequest,
        CheckType.HTTPS: HttpRequest,
        CheckType.DNS: DnsQuestion,
        CheckType.UDP: UdpExchange,
    }.get(kind)
    return Check("check", kind, port, make(**detail) if make else None, **{"timeout_s": 5.0, **own})


def http_check(port: int, **changes: Any) -> Check:
    return check_of(CheckType.HTTP, port, **changes)


def address(text: str) -> IPAddress:
    return IPv6Address(text) if ":" in text else IPv4Address(text)


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


async def probe_against(handler: Handler, kind: CheckType = CheckType.HTTP, **changes: Any) -> ProbeResult:
    async with serving(handler) as server:
        return await probe(LOOPBACK, check_of(kind, server.port, **changes), 0, None)


Responder = Callable[[bytes], bytes | None]


@contextlib.asynccontextmanager
async def answering(responder: Responder, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    """A UDP server: a reply, or none, to every datagram. `peers` has who sent them."""
    server = Server(0)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)

    def receive() -> None:
        data, peer = sock.recvfrom(65_535)
        server.peers.append(peer[0])
        server.last_port = peer[1]
        if (reply := responder(data)) is not None:
            sock.sendto(reply, peer)

    with sock:
        sock.bind((host, 0))
        server.port = sock.getsockname()[1]
        asyncio.get_running_loop().add_reader(sock, receive)
        try:
            yield server
        finally:
            asyncio.get_running_loop().remove_reader(sock)


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def in_new_network(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` in a thread with a fresh network namespace, which goes when the thread does. It has IPv6,
    whether the machine's own has or not.
    """
    failures: list[BaseException] = []

    def thread() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            ip("link set lo up")
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed on to the test
            failures.append(error)

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def unused_port(kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> Iterator[int]:
    """A port that nobody listens on, TCP or UDP; held meanwhile, so that nobody else gets it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.bind((host, 0))
        if kind is socket.SOCK_DGRAM:  # whoever has a UDP port gets what comes to it
            sock.connect((host, 9))
        yield sock.getsockname()[1]


def descriptors() -> set[str]:
    return {f"{path.name} {path.readlink()}" for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


OWN, VIP = "10.9.0.1", "10.9.0.2"
OWN6, VIP6 = "2001:db8:9::1", "2001:db8:9::2"
BEYOND = "192.0.2.1", "2001:db8:99::1"


class Wire:
    """Our end of a veth whose other end is in a network of its own, where the VIPs are. To the networks of
    `BEYOND` that is the router, which says that they are unreachable.
    """

    def __init__(self) -> None:
        self.peer = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo ready; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.peer.stdout is not None
        assert self.peer.stdout.readline() == "ready\n"
        ip(f"link add near type veth peer name far netns {self.peer.pid}")
        for command in (
            f"addr add {OWN}/24 dev near",
            f"addr add {OWN6}/64 dev near nodad",
            "link set near up",
        ):
            ip(command)
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.there("sh", "-c", f"echo 1 > /proc/sys/net/{setting}")
        for command in (f"addr add {VIP}/24 dev far", f"addr add {VIP6}/64 dev far nodad", "link set far up"):
            self.there("ip", *command.split())
        for network, via in (("192.0.2.0/24", VIP), ("2001:db8:99::/64", VIP6)):
            ip(f"route add {network} via {via}")
            self.there("ip", "route", "add", "unreachable", network)

    def there(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.peer.pid), "-n", *command], check=True)

    def listen(self) -> subprocess.Popen[str]:
        """A listener on port 80 of the VIPs, in the other network."""
        code = (
            "import socket; s = socket.create_server(('::', 80), family=socket.AF_INET6,"
            " dualstack_ipv6=True); print('ready', flush=True); input()"
        )
        listener = subprocess.Popen(
            ["nsenter", "-t", str(self.peer.pid), "-n", "python3", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        return listener

    def half_open(self) -> int:
        """How many half-open connections the other side has."""
        listing = subprocess.run(
            ["nsenter", "-t", str(self.peer.pid), "-n", "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        syn_recv = "03"
        return sum(line.split()[3] == syn_recv for line in listing.splitlines() if line.split()[3:])

    def close(self) -> None:
        self.peer.communicate("")
