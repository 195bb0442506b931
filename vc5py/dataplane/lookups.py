"""Asks the kernel for the ways to many reals, and for their MAC addresses, without keeping the event loop.

Knows netlink sockets; `rtnetlink` knows what is said. Must not know: reals, forwarding modes. A question is
answered before the call that asks it returns, so that nothing is waited for; after every `AT_ONCE` of them
everybody else gets a turn. Every refusal of the socket is a DataplaneError.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain

from vc5py.dataplane import rtnetlink
from vc5py.dataplane.rtnetlink import (
    End,
    Event,
    Found,
    LinksChanged,
    Message,
    NeighbourEvent,
    Refused,
    Route,
    RoutesChanged,
)
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress

AT_ONCE = 128
"""Questions; also messages that are read before others get a turn."""

SOLICITED_PER_S = 10_000  # a broadcast each, where a real is not known yet
_REMEDIES = {
    errno.ENOBUFS: "; the neighbour table may be full: see net.ipv4.neigh.default.gc_thresh3, ipv6 too"
}

_DATAGRAM = 1 << 16
_BUFFER = 1 << 22  # far more than the answers to so many questions, and room for a burst of events
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400

Place = tuple[IPAddress, int]
"""An address on an interface."""


def _open(groups: int = 0) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError as error:
        raise DataplaneError(f"no netlink socket: {error.strerror}") from error
    opened.setblocking(False)
    with suppress(OSError):  # beyond the system's limit where that is allowed
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    try:
        opened.bind((0, groups))
    except OSError as error:
        opened.close()
        raise DataplaneError(f"no netlink socket: {error.strerror}") from error
    return opened


def _reason(refused: Refused) -> str:
    return os.strerror(refused.code) + _REMEDIES.get(refused.code, "")


def _exchange(opened: socket.socket, questions: bytes) -> None:
    try:
        opened.send(questions)
    except OSError as error:
        raise DataplaneError(f"netlink: {error.strerror}") from error


def _answers(opened: socket.socket) -> Iterator[list[Message]]:
    """All that has come, by datagram."""
    while True:
        try:
            data = opened.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            raise DataplaneError(f"netlink: {error.strerror}") from error
        yield list(rtnetlink.read(data))


async def routes_to(addresses: Sequence[IPAddress]) -> AsyncGenerator[tuple[IPAddress, Route | None]]:
    """The way to each address, None where there is none."""
    with closing(_open()) as opened:
        for first in range(0, len(addresses), AT_ONCE):
            asked = addresses[first : first + AT_ONCE]
            _exchange(opened, b"".join(rtnetlink.route_question(a, n) for n, a in enumerate(asked)))
            answers = chain.from_iterable(_answers(opened))
            found = {answer.sequence: answer.route for answer in answers if isinstance(answer, Found)}
            for n, address in enumerate(asked):
                yield address, found.get(n)
            await asyncio.sleep(0)


async def neighbours() -> AsyncGenerator[list[NeighbourEvent]]:
    """The neighbour table, some hundreds of entries at a time: others get a turn before they are read, not
    after, so that what is given is how things are.
    """
    with closing(_open()) as opened:
        _exchange(opened, rtnetlink.neighbours_question(1))
        for messages in _answers(opened):
            for refused in (message for message in messages if isinstance(message, Refused)):
                raise DataplaneError(f"the neighbour table can't be read: {_reason(refused)}")
            yield [message for message in messages if isinstance(message, NeighbourEvent)]
            if any(isinstance(message, End) for message in messages):
                return
            await asyncio.sleep(0)


async def solicit(places: Sequence[Place]) -> list[tuple[Place, str]]:
    """Has the kernel find out, or confirm, who is there; returns those it can't ask, and why."""
    refused: list[tuple[Place, str]] = []
    with closing(_open()) as opened:
        for first in range(0, len(places), AT_ONCE):
            asked = places[first : first + AT_ONCE]
            _exchange(opened, b"".join(rtnetlink.solicitation(*place, n) for n, place in enumerate(asked)))
            answers = chain.from_iterable(_answers(opened))
            refused += [(asked[a.sequence], _reason(a)) for a in answers if isinstance(a, Refused)]
            if first + AT_ONCE < len(places):
                await asyncio.sleep(AT_ONCE / SOLICITED_PER_S)
    return refused


async def watch() -> AsyncGenerator[Event]:
    """Every change of the neighbour table, of routes (and addresses) and of links, from now on, until closed.
    Where more has happened than there was room for, anything may have changed.
    """
    loop, read = asyncio.get_running_loop(), 0
    with closing(_open(_GROUPS)) as opened:
        while True:
            try:
                data = await loop.sock_recv(opened, _DATAGRAM)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise DataplaneError(f"netlink: {error.strerror}") from error
                yield RoutesChanged()
                yield LinksChanged()
                continue
            for message in rtnetlink.read(data):
                if isinstance(message, Found):
                    yield RoutesChanged()
                elif isinstance(message, NeighbourEvent | RoutesChanged | LinksChanged):
                    yield message
            read += 1
            if read % AT_ONCE == 0:
                await asyncio.sleep(0)
