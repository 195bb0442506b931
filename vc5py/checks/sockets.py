"""The sockets of probes: where a probe goes, and a socket all of whose packets carry its mark.

Must not know: what is said over a socket. Invariant: a socket leads to the VIP, never to the real; `SO_MARK`
is set before the first packet leaves and steers every packet.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from vc5py.model import IPAddress

MAX_BYTES = 64 * 1024
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; the socket module names it only from Python 3.12 on


@dataclass(slots=True)
class Attempt:
    """Where one probe goes, and how far it has come (for the report if the deadline strikes).

    `mark` 0 is "unmarked". `source` is ignored where it is of another address family than `vip`. At most
    `max_bytes` are ever read from the peer.
    """

    vip: IPAddress
    port: int
    mark: int
    source: IPAddress | None
    max_bytes: int = MAX_BYTES
    address: str = field(init=False)
    """`vip` as text, made once."""
    phase: str = field(default="connect", init=False)
    received: int = field(default=0, init=False)
    received_before: int = field(default=0, init=False)
    """What had been received when the phase began."""

    def __post_init__(self) -> None:
        self.address = str(self.vip)

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.received_before = self.received

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.vip.version == 4 else socket.AF_INET6

    @property
    def own(self) -> str | None:
        """`source` where it can be used."""
        usable = self.source is not None and self.source.version == self.vip.version
        return str(self.source) if usable else None


def make_socket(attempt: Attempt, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket (`SOCK_STREAM`, `SOCK_DGRAM`) with mark and source, not connected yet."""
    sock = socket.socket(attempt.family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_mark(sock, attempt.mark)
        if (own := attempt.own) is not None:
            # Choose the port on connecting, by the whole 4-tuple: else all probes share one range of ports.
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((own, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def set_mark(sock: socket.socket, mark: int) -> None:
    if mark:  # 0 is what a socket has anyway, and setting it takes a privilege
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
