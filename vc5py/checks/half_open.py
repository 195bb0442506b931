"""Half-open TCP: SYNs from a raw socket, and what comes back to each.

Must not know: what an answer means. Needs CAP_NET_RAW.

The kernel answers a SYN-ACK of which it knows nothing with a RST of its own, without the mark, which would
go to another real. So each SYN's port is held by a *guard*, a socket that listens on it and whose filter
drops all that comes: the kernel takes it for received, and lends the port to nobody else.

One raw socket serves all the SYNs from one address; each raw socket costs for every TCP packet that the
machine gets. The upper half of all our sequence numbers is the same, a random *tag*, and the raw socket's
filter lets only segments through that acknowledge such a number: the traffic of others never wakes us.
"""

from __future__ import annotations

import asyncio
import ctypes
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

from vc5py.checks.sockets import Attempt, make_socket
from vc5py.checks.tcp_segment import ACK, RST, SYN, Answer, Ends, parse, rst, syn, without_ip_header
from vc5py.model import IPAddress

RETRANSMIT_S = 1.0  # RFC 6298 section 2
_MAX_BURST = 64
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # <linux/in.h>, <linux/in6.h>
_IP_HEADER_SIZE = (0xB1, 0, 0, 0)  # ldxb 4*([0]&0xf)
_ZERO_SIZE = (0x01, 0, 0, 0)  # ldx #0: an IPv6 socket sees no IP header
_DROP = (0x06, 0, 0, 0)  # ret #0

_random = random.SystemRandom()
_Key = tuple[str, int, int, int]  # peer's address and port, own port, sequence number


class HalfOpen:
    """The SYNs from one address. Use it within `shared`."""

    def __init__(self, own: str, family: socket.AddressFamily) -> None:
        self._family = family
        self._tag = _random.getrandbits(16)
        self._waiting: dict[_Key, asyncio.Future[Answer]] = {}
        self.users = 0
        self._raw = socket.socket(
            family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP
        )
        try:
            _attach(self._raw, _only_answers_to(self._tag, family))
            _report_icmp_errors(self._raw)
            self._raw.bind((own, 0))
            asyncio.get_running_loop().add_reader(self._raw, self._receive)
        except BaseException:
            self._raw.close()
            raise

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._raw)
        self._raw.close()

    async def knock(self, own: IPAddress, attempt: Attempt) -> Answer:
        """Sends a SYN, once more after a second without an answer, and takes it back by a RST in the end.

        Returns the SYN-ACK or RST that came; raises `OSError` for an ICMP error.
        """
        sequence = self._tag << 16 | _random.randrange(0xFFFF)
        with _guarded_port(str(own), self._family) as port:
            ends = Ends(own, port, attempt.vip, attempt.port)
            key = (attempt.address, attempt.port, port, sequence)
            self._send(syn(ends, sequence), attempt)
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[key] = answer
            again = asyncio.get_running_loop().call_later(RETRANSMIT_S, self._send_again, key, ends, attempt)
            try:
                return await answer
            finally:
                again.cancel()
                del self._waiting[key]
                if not _is_refusal(answer):
                    with suppress(OSError):
                        self._send(rst(ends, sequence + 1), attempt)

    def _send_again(self, key: _Key, ends: Ends, attempt: Attempt) -> None:
        with suppress(OSError):
            self._send(syn(ends, key[3]), attempt)

    def _send(self, segment: bytes, attempt: Attempt) -> None:
        mark = [(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", attempt.mark))] if attempt.mark else []
        self._raw.sendmsg([segment], mark, 0, (attempt.address, 0))

    def _receive(self) -> None:
        for _ in range(_MAX_BURST):
            try:
                packet, peer = self._raw.recvfrom(128)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error came; the queue has the details
                self._receive_errors()
                continue
            segment = packet if self._family == socket.AF_INET6 else without_ip_header(packet)
            answer = parse(segment)
            if answer is not None and (answer.flags & RST or answer.flags & (SYN | ACK) == SYN | ACK):
                key = (_address(peer[0]), answer.peer_port, answer.own_port, answer.ack - 1)
                self._settle(key, answer)

    def _receive_errors(self) -> None:
        """Each with the beginning of our own segment, and the kernel's `struct sock_extended_err`."""
        for _ in range(_MAX_BURST):
            try:
                segment, control, _, peer = self._raw.recvmsg(64, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if len(segment) >= 8 and control:
                own_port, peer_port, sequence = struct.unpack_from("!HHI", segment)
                number = struct.unpack_from("I", control[0][2])[0]
                self._settle(
                    (_address(peer[0]), peer_port, own_port, sequence), OSError(number, "ICMP error")
                )

    def _settle(self, key: _Key, outcome: Answer | OSError) -> None:
        waiting = self._waiting.get(key)
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, OSError):
            waiting.set_exception(outcome)
        else:
            waiting.set_result(outcome)


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, HalfOpen]] = WeakKeyDictionary()


@contextmanager
def shared(own: str, family: socket.AddressFamily) -> Iterator[HalfOpen]:
    """The one for this event loop and address, which goes with its last user."""
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    if own not in of_loop:
        of_loop[own] = HalfOpen(own, family)
    half_open = of_loop[own]
    half_open.users += 1
    try:
        yield half_open
    finally:
        half_open.users -= 1
        if not half_open.users:
            del of_loop[own]
            half_open.close()


def own_address(attempt: Attempt) -> str:
    """The source: as told, or as the kernel routes the marked packets."""
    if (own := attempt.own) is not None:
        return own
    with make_socket(attempt, socket.SOCK_DGRAM) as sock:
        sock.connect((attempt.address, attempt.port))
        address: str = sock.getsockname()[0]
        return address


@contextmanager
def _guarded_port(own: str, family: socket.AddressFamily) -> Iterator[int]:
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as guard:
        _attach(guard, [_DROP])
        guard.bind((own, 0))
        guard.listen(1)
        yield guard.getsockname()[1]


def _is_refusal(answer: asyncio.Future[Answer]) -> bool:
    """The peer has nothing that a RST would take back."""
    done = answer.done() and not answer.cancelled() and answer.exception() is None
    return done and bool(answer.result().flags & RST)


def _address(text: str) -> str:
    """Without the zone of a link-local address."""
    return text.partition("%")[0]


def _report_icmp_errors(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def _only_answers_to(tag: int, family: socket.AddressFamily) -> list[tuple[int, int, int, int]]:
    """Classic BPF: segments with ACK that acknowledge a number of which `tag` is the upper half."""
    return [
        _IP_HEADER_SIZE if family == socket.AF_INET else _ZERO_SIZE,
        (0x50, 0, 0, 13),  # ldb [x + 13]: the flags
        (0x45, 0, 3, ACK),  # jset #ACK, else drop
        (0x48, 0, 0, 8),  # ldh [x + 8]: upper half of the acknowledged number
        (0x15, 0, 1, tag),  # jeq #tag, else drop
        (0x06, 0, 0, 0xFFFF),  # ret #65535
        _DROP,
    ]


def _attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """SO_ATTACH_FILTER with a `struct sock_fprog`; each instruction is (code, jump if, jump if not, k)."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
    )
