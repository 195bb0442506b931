"""The UDP sockets of BFD (RFC 5881, sections 4 and 5): what arrives, when, with which TTL; sends with 255.

Standard library only. Must not know: sessions, packets' content.

Invariants: nothing here blocks. When a datagram arrived is the kernel's time stamp, not the time of reading
it: a reader that the scheduler kept waiting judges no worse. The kernel itself throws away datagrams with
another TTL than 255, before they take room in the buffer: only the link can bother a reader with high
priority. One reading takes a bounded number of datagrams.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from vc5py.bfd.sessions import TTL, Datagram

PORT = 3784
SOURCE_PORTS = range(49152, 65536)
BUDGET = 256
BUFFER = 1 << 20
MAX_DATAGRAM = 128  # nothing valid is longer; the rest is cut off and never looked at
_BIND_TRIES = 32

# linux/in.h, in6.h, asm-generic/socket.h: Python has no names for these.
_IP_RECVTTL, _IP_TTL_CMSG = 12, 2
_IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT_CMSG = 51, 52
_SO_TIMESTAMPNS, _SO_ATTACH_FILTER, _SO_MEMINFO = 35, 26, 55
_TIMESPEC = struct.Struct("=qq") if sys.maxsize > 1 << 32 else struct.Struct("=ll")
_INT = struct.Struct("=i")
_MEMINFO = struct.Struct("=9I")
_DROPS = 8  # SK_MEMINFO_DROPS
_ANCILLARY = socket.CMSG_SPACE(_INT.size) + socket.CMSG_SPACE(_TIMESPEC.size)
_CS6 = 0xC0
_TC_PRIO_CONTROL = 7

# Where the TTL or hop limit is in the network header (linux/filter.h: SKF_NET_OFF).
_NET_OFF = 0x1_0000_0000 - 0x100000
_TTL_AT = {socket.AF_INET: 8, socket.AF_INET6: 7}


def _attach_filter(sock: socket.socket) -> None:
    """Classic BPF: accept what has TTL 255, drop the rest; `drops` counts what it drops."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, _NET_OFF + _TTL_AT[sock.family]),  # ldb [network header + ...]
            (0x15, 0, 1, TTL),  # jeq 255
            (0x06, 0, 0, 0xFFFFFFFF),  # ret all of it
            (0x06, 0, 0, 0),  # ret nothing
        )
    )
    memory = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


class Receiver:
    """Datagrams of one IP version to port 3784. Raises OSError where the port is taken."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self._socket = sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            _attach_filter(sock)
            sock.bind(("", PORT))
        except BaseException:
            sock.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def dropped(self) -> int:
        """Datagrams that the kernel threw away: another TTL than 255, or no room."""
        info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(info)[_DROPS])

    def read(self) -> Iterator[Datagram]:
        """What waits, BUDGET datagrams at most."""
        for _ in range(BUDGET):
            try:
                data, ancillary, _, address = self._socket.recvmsg(MAX_DATAGRAM, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue
            now, wall = time.monotonic(), time.time()
            ttl, arrived = _read_ancillary(ancillary, wall)
            # A wall clock that was set meanwhile must not make it of the future.
            yield Datagram(address[0], ttl, data, now - max(0.0, wall - arrived))


def _read_ancillary(ancillary: list[tuple[int, int, bytes]], wall: float) -> tuple[int, float]:
    """TTL, and the time of arrival on the wall clock."""
    ttl, arrived = 0, wall
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, _IP_TTL_CMSG), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT_CMSG)):
            (ttl,) = _INT.unpack_from(data)
        elif (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            arrived = seconds + nanoseconds * 1e-9
    return ttl, arrived


class Sender:
    """Sends to one neighbor, from one source port as long as it lives (RFC 5881, section 4)."""

    def __init__(self, neighbor: str, source: str | None, rng: random.Random) -> None:
        self._neighbor = neighbor
        self._source = source or ""
        self._rng = rng
        self._port: int | None = None
        self._socket: socket.socket | None = None
        self.errors = 0

    def send(self, data: bytes) -> None:
        """Failures are counted: no route, no address, nobody there. The next one tries anew."""
        try:
            if self._socket is None:
                self._socket = self._open()
            self._socket.send(data)
        except ConnectionRefusedError:
            self.errors += 1  # an ICMP error about an earlier one; the socket is fine
        except OSError:
            self.errors += 1
            self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._neighbor else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CS6)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CS6)
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _TC_PRIO_CONTROL)
            self._bind(sock)
            sock.connect((self._neighbor, PORT))
        except BaseException:
            sock.close()
            raise
        return sock

    def _bind(self, sock: socket.socket) -> None:
        """Raises OSError. No error is kept in a variable: that is a cycle, and the process collects none."""
        tries = [self._port] if self._port else self._rng.sample(SOURCE_PORTS, _BIND_TRIES)
        if self._port:  # which a process that was forked from this one may hold
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for port in tries:
            try:
                sock.bind((self._source, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            self._port = port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return
        self._port = None
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
