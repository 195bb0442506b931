"""Packets that the client has sent, and those of them that have come to the reals, whatever balancers count.

Knows nothing of balancers. A packet socket counts on each real what is from the client's address and for that
host, not what a bridge floods. All that the client sends while somebody counts must be for the VIPs, by IPv4.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from vc5py.lab.assembly import Lab
from vc5py.lab.kernel import entered
from vc5py.lab.layout import CLIENT, Host
from vc5py.lab.network import run

_ETH_P_IP, _SOL_PACKET, _PACKET_STATISTICS, _SO_ATTACH_FILTER = 0x0800, 263, 6, 26
_LOAD_WORD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PACKET_TYPE, _SOURCE = 0xFFFFF000 + 4, 12
_TO_THIS_HOST = 0


def _counting(namespace: str, source: int) -> socket.socket:
    """A socket that counts packets from there, and keeps nothing of them."""
    steps = [
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_IF_EQUAL, 0, 3, _TO_THIS_HOST),
        (_LOAD_WORD, 0, 0, _SOURCE),
        (_IF_EQUAL, 0, 1, source),
        (_RETURN, 0, 0, 1),
        (_RETURN, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    with entered(namespace):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    program = struct.pack("HL", len(steps), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    sock.bind(("eth0", _ETH_P_IP))
    return sock


def _counted(sock: socket.socket) -> int:
    """Since the last time it was asked; those that found no room are in the count."""
    packets, _ = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return int(packets)


class Arrivals:
    """Counts while the block runs. It must begin while nothing is under way."""

    def __init__(self, lab: Lab, reals: Sequence[Host]) -> None:
        self._lab = lab
        self._namespaces = [lab.layout.namespace(real.name) for real in reals]
        self._sockets: list[socket.socket] = []
        self._sent = self._arrived = 0

    def __enter__(self) -> Arrivals:
        self._sent = self._all_sent()
        for namespace in self._namespaces:
            self._sockets.append(_counting(namespace, int(CLIENT.address)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()

    def now(self) -> tuple[int, int]:
        """How many were sent, and how many have arrived."""
        self._arrived += sum(map(_counted, self._sockets))
        return self._all_sent() - self._sent, self._arrived

    def none_is_lost(self) -> int:
        """Once nothing is sent any more; returns how many packets that were. Errors: LabError."""
        try:
            self._lab.wait_for("all packets have arrived", lambda: len(set(self.now())) == 1)
        finally:
            print("packets sent by the client: {}, arrived at the reals: {}".format(*self.now()))
        return self.now()[0]

    def _all_sent(self) -> int:
        shown = run("ip", "netns", "exec", self._lab.layout.namespace(CLIENT.name), "cat", "/proc/net/snmp")
        names, values = (line.split() for line in shown.splitlines() if line.startswith("Ip: "))
        return int(dict(zip(names, values, strict=True))["OutRequests"])
