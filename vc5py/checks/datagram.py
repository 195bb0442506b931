"""One datagram to the VIP and the first one that comes back, for the udp and dns checks.

Must not know: what the datagrams say. Invariants: the socket is connected to the VIP, so that nobody else's
datagram counts, and closed however the probe ends.
"""

from __future__ import annotations

import asyncio
import socket

from vc5py.checks.result import ProbeFailure, Reason
from vc5py.checks.sockets import Attempt, make_socket

_MAX_DATAGRAM = 65_535
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # <linux/in.h>, <linux/in6.h>


async def exchange_datagrams(attempt: Attempt, payload: bytes) -> bytes:
    """The reply, which may be empty. Raises `ProbeFailure` or `OSError`."""
    sock = make_socket(attempt, socket.SOCK_DGRAM)
    try:
        _report_icmp_errors(sock)
        sock.connect((attempt.address, attempt.port))
        attempt.enter("reply")
        sock.send(payload)
        reply = await asyncio.get_running_loop().sock_recv(sock, _MAX_DATAGRAM)
    except ConnectionRefusedError:
        raise ProbeFailure(Reason.PORT_UNREACHABLE, f"nobody has UDP port {attempt.port}") from None
    finally:
        sock.close()
    attempt.received += len(reply)
    return reply


def _report_icmp_errors(sock: socket.socket) -> None:
    """All of them; without being asked, the kernel tells of unreachable ports only."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
