"""Questions about routes and neighbours, and the answers, as rtnetlink's bytes (rtnetlink(7)).

Without I/O. pyroute2 knows all of rtnetlink, and the time that it takes for a message shows where tens of
thousands of reals are asked about every few seconds; so these few messages are written and read here.
Invariant: a message that is cut short, or of a kind unknown here, is passed over.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from vc5py.dataplane.base import Neighbour
from vc5py.model import IPAddress

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE = 0x3FFF  # of an attribute, without its flags
_REQUEST, _DUMP = 0x01, 0x300
_REPLACE_OR_CREATE = 0x100 | 0x400
# linux/rtnetlink.h
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length of destination, and what isn't needed here
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
# linux/neighbour.h
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_USE = 0x01
_NUD_STALE = 0x04
_NUD_SURE = 0x02 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, delay, probe, noarp, permanent
_NUD_WITH_ADDRESS = _NUD_SURE | _NUD_STALE

_ETHERNET = 6  # bytes of an address


class _Kind:
    """Of messages: linux/netlink.h, linux/rtnetlink.h."""

    ERROR, DONE = 2, 3
    NEWLINK, DELLINK = 16, 17
    NEWADDR, DELADDR = 20, 21
    NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
    NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30


@dataclass(frozen=True, slots=True)
class Route:
    """`gateway` is None where the destination is on the link itself. `source`: the address of ours that the
    kernel would send from, None where it has none.
    """

    ifindex: int
    gateway: IPAddress | None
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class NeighbourEvent:
    """An entry of the neighbour table; `neighbour` is None where its MAC address isn't known (any more).

    `sure`: the kernel has confirmed it lately, or is about to.
    """

    address: IPAddress
    ifindex: int
    neighbour: Neighbour | None
    sure: bool


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Some route was added, changed or removed, or an address of ours, which routes name as their source."""


@dataclass(frozen=True, slots=True)
class LinksChanged:
    """Some link came, went or changed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The kernel's answer to the question of that number is no."""

    sequence: int
    code: int  # errno.h


@dataclass(frozen=True, slots=True)
class Found:
    """The way that the question of that number was about; or one that is new, if nobody has asked. None where
    it leads to more than one place, or to none.
    """

    sequence: int
    route: Route | None


@dataclass(frozen=True, slots=True)
class End:
    """Of all that was asked for."""


Event = NeighbourEvent | RoutesChanged | LinksChanged
Message = Event | Refused | Found | End


# Questions


def _family(address: IPAddress) -> int:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, sequence, 0) + body


def route_question(address: IPAddress, sequence: int) -> bytes:
    """The way that a packet to the address would take."""
    fixed = _ROUTE.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return _message(_Kind.GETROUTE, 0, sequence, fixed + _attribute(_RTA_DST, address.packed))


def neighbours_question(sequence: int) -> bytes:
    """The whole neighbour table."""
    return _message(_Kind.GETNEIGH, _DUMP, sequence, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def solicitation(address: IPAddress, ifindex: int, sequence: int) -> bytes:
    """Has the kernel find out, or confirm, the neighbour's MAC address (as `ip neigh replace ... use`)."""
    fixed = _NEIGHBOUR.pack(_family(address), ifindex, 0, _NTF_USE, 0)
    return _message(
        _Kind.NEWNEIGH, _REPLACE_OR_CREATE, sequence, fixed + _attribute(_NDA_DST, address.packed)
    )


# Answers


def read(data: bytes) -> Iterator[Message]:
    """What one datagram from the kernel says."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, start)
        if length < _HEADER.size or start + length > len(data):
            return
        message = _read_one(data, kind, sequence, start + _HEADER.size, start + length)
        if message is not None:
            yield message
        start += length + 3 & ~3


def _read_one(data: bytes, kind: int, sequence: int, start: int, end: int) -> Message | None:
    match kind:
        case _Kind.NEWNEIGH | _Kind.DELNEIGH:
            return _neighbour(data, start, end, gone=kind == _Kind.DELNEIGH)
        case _Kind.NEWROUTE:
            return Found(sequence, _route(data, start, end))
        case _Kind.DELROUTE | _Kind.NEWADDR | _Kind.DELADDR:
            return RoutesChanged()
        case _Kind.NEWLINK | _Kind.DELLINK:
            return LinksChanged()
        case _Kind.DONE:
            return End()
        case _Kind.ERROR:
            return _refused(data, sequence, start, end)
    return None


def _refused(data: bytes, sequence: int, start: int, end: int) -> Refused | None:
    if start + 4 > end:
        return None
    code = -int.from_bytes(data[start : start + 4], sys.byteorder, signed=True)
    return Refused(sequence, code) if code else None


def _attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            break
        found[kind & _TYPE] = data[start + _ATTRIBUTE.size : start + length]
        start += length + 3 & ~3
    return found


def _address(packed: bytes | None) -> IPAddress | None:
    if packed is None or len(packed) not in (4, 16):
        return None
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _route(data: bytes, start: int, end: int) -> Route | None:
    attributes = _attributes(data, start + _ROUTE.size, end)
    out = attributes.get(_RTA_OIF)
    if out is None or len(out) != 4:
        return None
    via = attributes.get(_RTA_VIA)  # a gateway of the other version, after its family
    gateway = attributes.get(_RTA_GATEWAY) or (via[2:] if via else None)
    source = _address(attributes.get(_RTA_PREFSRC))
    return Route(int.from_bytes(out, sys.byteorder), _address(gateway), source)


def _neighbour(data: bytes, start: int, end: int, *, gone: bool) -> NeighbourEvent | None:
    if start + _NEIGHBOUR.size > end:
        return None
    _, ifindex, state, _, _ = _NEIGHBOUR.unpack_from(data, start)
    attributes = _attributes(data, start + _NEIGHBOUR.size, end)
    address, mac = _address(attributes.get(_NDA_DST)), attributes.get(_NDA_LLADDR, b"")
    if address is None:
        return None
    if gone or not state & _NUD_WITH_ADDRESS or len(mac) != _ETHERNET:
        return NeighbourEvent(address, ifindex, None, sure=False)
    return NeighbourEvent(address, ifindex, Neighbour(ifindex, mac.hex(":")), sure=bool(state & _NUD_SURE))
