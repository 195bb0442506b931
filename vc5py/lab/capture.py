"""Frames as they are on a link: what shows that they were really tagged, or really encapsulated.

Must not know: what frames ought to look like. A packet socket (packet(7)) collects while the block runs; the
kernel gives a VLAN tag beside the frame, or leaves it in: both are read.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from types import TracebackType

from .kernel import entered
from .layout import IPAddress

_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_ETH_P_8021Q = 0x8100
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status, ..., VLAN tag and its protocol
_TP_STATUS_VLAN_VALID = 1 << 4
_BUFFER_BYTES = 16 << 20
_SNAP_BYTES = 128


@dataclass(frozen=True, slots=True)
class Frame:
    """`vlan` is 0 where the frame has no tag; `packet` is the start of what follows the L2 header."""

    vlan: int
    ethertype: int
    packet: bytes

    def is_to(self, destination: IPAddress, source: IPAddress | None = None) -> bool:
        """Whether it carries a packet to that address; from that one, if given."""
        at, ethertype = (16, _ETH_P_IP) if destination.version == 4 else (24, _ETH_P_IPV6)
        size = len(destination.packed)
        from_there = source is None or self.packet[at - size : at] == source.packed
        return (
            self.ethertype == ethertype and self.packet[at : at + size] == destination.packed and from_there
        )

    def within(self, size: int, version: int) -> Frame:
        """The packet of that IP version behind `size` bytes of headers, as if it had come without them."""
        return Frame(self.vlan, _ETH_P_IP if version == 4 else _ETH_P_IPV6, self.packet[size:])


class Capture:
    """All frames that pass an interface of a namespace, in either direction, while the block runs."""

    def __init__(self, namespace: str, interface: str) -> None:
        self._namespace, self._interface = namespace, interface
        self._socket: socket.socket | None = None

    def __enter__(self) -> Capture:
        with entered(self._namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.bind((self._interface, _ETH_P_ALL))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._socket:
            self._socket.close()

    def frames(self) -> list[Frame]:
        """Those that have passed since the last call."""
        assert self._socket
        found: list[Frame] = []
        while True:
            try:
                frame, extra, _, _ = self._socket.recvmsg(_SNAP_BYTES, socket.CMSG_SPACE(_AUXDATA.size))
            except BlockingIOError:
                return found
            found.append(_frame(frame, extra[0][2] if extra else b""))


def _frame(frame: bytes, auxiliary: bytes) -> Frame:
    (ethertype,) = struct.unpack_from(">H", frame, 12)
    if len(auxiliary) >= _AUXDATA.size:
        status, *_, tci, _ = _AUXDATA.unpack_from(auxiliary)
        if status & _TP_STATUS_VLAN_VALID:
            return Frame(tci & 0xFFF, ethertype, frame[14:])
    if ethertype == _ETH_P_8021Q:
        tci, ethertype = struct.unpack_from(">HH", frame, 14)
        return Frame(tci & 0xFFF, ethertype, frame[18:])
    return Frame(0, ethertype, frame[14:])
