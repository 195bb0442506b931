"""Datagrams to and from the other balancers: one UDP socket for each IP version that is used.

Knows addresses, multicast and buffers; not what is in a datagram. Multicast stays on its link (TTL 1), and
what we send doesn't come back. To one node we send with TTL 255, by which a later version may know that it
comes from the link (RFC 5082); we don't ask for it, as earlier ones send with another. Sending never waits
and never fails for good: networks come back.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from vc5py.core.flowsync import Look
from vc5py.errors import PeerError
from vc5py.model import IPAddress
from vc5py.peers import sieve

RECEIVE_BUFFER = 16 << 20
SEND_BUFFER = 4 << 20
ROOM = 9216  # bytes for one datagram
BATCH = 256  # datagrams that are received in one go

_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_TTL = 255
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29

Address = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Whom to talk to. `group` None: no multicast. `interface`: its index, for multicast. `peers`: who gets
    everything by unicast; where there is no group, nobody else is listened to.
    """

    port: int
    group: IPAddress | None = None
    interface: int = 0
    peers: tuple[IPAddress, ...] = ()

    def versions(self) -> list[int]:
        addresses = (*self.peers, *((self.group,) if self.group is not None else ()))
        return sorted({address.version for address in addresses})


class Transport:
    """Open sockets. Raises PeerError where they can't be had."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._sockets: dict[int, socket.socket] = {}
        self._buffers = [memoryview(bytearray(ROOM)) for _ in range(BATCH)]
        self._sources = frozenset(map(str, places.peers)) if places.group is None else None
        self.failed = 0  # datagrams that could not be sent
        self._sifts = False
        self._drops: dict[int, int] = {}
        self._dropped = 0
        try:
            for version in places.versions():
                self._sockets[version] = self._open(version)
        except OSError as error:
            self.close()
            raise PeerError(f"can't share flows on port {places.port}: {error.strerror or error}") from error
        self._targets: list[tuple[socket.socket, Address]] = [
            (self._sockets[address.version], (str(address), places.port))
            for address in (*((places.group,) if places.group is not None else ()), *places.peers)
        ]

    def _open(self, version: int) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            for option, size in ((_SO_RCVBUFFORCE, RECEIVE_BUFFER), (_SO_SNDBUFFORCE, SEND_BUFFER)):
                _try_option(made, option, size)
            if version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _TTL)
            else:
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _TTL)
            group = self._places.group
            if group is not None and group.version == version:
                _join(made, group, self._places.interface)
            made.bind(("" if version == 4 else "::", self._places.port))
        except OSError:
            made.close()
            raise
        return made

    def filenos(self) -> list[int]:
        return [one.fileno() for one in self._sockets.values()]

    def send(self, data: bytes, address: Address | None = None) -> None:
        """To one address, or to all."""
        if address is None:
            for sender, target in self._targets:
                self._send(sender, data, target)
        else:
            sender = self._sockets[6 if len(address) == 4 else 4]
            self._send(sender, data, address)

    def _send(self, sender: socket.socket, data: bytes, target: Address) -> None:
        try:
            sender.sendto(data, target)
        except OSError:
            self.failed += 1

    def receive(self) -> Iterator[tuple[memoryview, Address, bool]]:
        """What has come, BATCH datagrams of each IP version at most, each with where it came from and whether
        that is a place to listen to. What was yielded is good until the next call.
        """
        for receiver in self._sockets.values():
            for buffer in self._buffers:
                try:
                    size, address = receiver.recvfrom_into(buffer)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error about something that was sent
                    continue
                yield buffer[:size], address, self._sources is None or _plain(address) in self._sources

    def sift(self, look: Look | None) -> None:
        """From now on the kernel throws away what looks otherwise, or comes from where we don't listen; None:
        nothing. Where it can't, all of it comes to us as before.
        """
        if (look is not None) is self._sifts:
            return
        self._sifts = look is not None
        for version, one in self._sockets.items():
            with suppress(OSError):
                if look is None:
                    sieve.detach(one)
                else:
                    sieve.attach(one, sieve.program(look, self._listens_to(version)))

    def _listens_to(self, version: int) -> list[IPAddress] | None:
        if self._sources is None:
            return None
        return [peer for peer in self._places.peers if peer.version == version]

    def dropped(self) -> int:
        """Datagrams that the kernel has thrown away: there was no room, or `sift`. To be asked often."""
        for version, one in self._sockets.items():
            before, self._drops[version] = self._drops.get(version, 0), sieve.drops(one)
            self._dropped += (self._drops[version] - before) % (1 << 32)
        return self._dropped

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()


def _plain(address: Address) -> str:
    return str(ip_address(address[0].partition("%")[0]))


def _try_option(made: socket.socket, option: int, size: int) -> None:
    """Beyond the system's limit where we may."""
    try:
        made.setsockopt(socket.SOL_SOCKET, option, size)
    except PermissionError:
        plain = socket.SO_RCVBUF if option == _SO_RCVBUFFORCE else socket.SO_SNDBUF
        made.setsockopt(socket.SOL_SOCKET, plain, size)


def _join(made: socket.socket, group: IPAddress, interface: int) -> None:
    """Of multicast only this group, by this interface; nothing that we send ourselves."""
    if isinstance(group, IPv4Address):
        request = struct.pack("@4s4si", group.packed, bytes(4), interface)
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        return
    made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    request = group.packed + struct.pack("@I", interface)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
