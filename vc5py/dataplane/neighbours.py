"""Keeps the data plane's knowledge of where the reals are fresh: netlink events at once, and a periodic look.

Packets that the XDP program sends bypass the kernel's neighbour code, so that the kernel would let the
entries grow stale for ever: whatever isn't confirmed lately is solicited again. What is known of a real is
kept until something better is known; whether the real answers at all is for the checks to find out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.netlink import NeighbourEvent, Netlink
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress

_log = logging.getLogger(__name__)

REFRESH_S = 2.0

OnChange = Callable[[IPAddress, Neighbour | None], None]


class NeighbourWatch:
    """Tells `on_change` where each wanted real is; reals beyond a router have no place on our L2."""

    def __init__(self, netlink: Netlink, ifindexes: Iterable[int], on_change: OnChange) -> None:
        self._netlink = netlink
        self._ifindexes = frozenset(ifindexes)
        self._on_change = on_change
        self._wanted: frozenset[IPAddress] = frozenset()
        self._known: dict[IPAddress, Neighbour] = {}
        self._unreachable: set[IPAddress] = set()

    def want(self, reals: frozenset[IPAddress]) -> None:
        """The reals to look after from now on."""
        for gone in self._known.keys() - reals:
            del self._known[gone]
        self._wanted = reals

    @property
    def complete(self) -> bool:
        """Whether the place of every wanted real is known."""
        return self._wanted <= self._known.keys()

    async def refresh(self) -> None:
        """One full look at the neighbour table, soliciting all that isn't sure."""
        all_events = await self._netlink.neighbours()
        events = {event.address: event for event in all_events if event.ifindex in self._ifindexes}
        for real in self._wanted:
            event = events.get(real)
            if event is not None:
                self._learn(event)
            if event is None or not event.sure:
                await self._solicit(real)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events(), name="neighbour events")
            group.create_task(self._refresh_for_ever(), name="neighbour refresh")

    async def _follow_events(self) -> None:
        async for event in self._netlink.watch_neighbours():
            if event.address in self._wanted:
                self._learn(event)

    async def _refresh_for_ever(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _solicit(self, real: IPAddress) -> None:
        route = await self._netlink.route_to(real)
        if route is None or route.gateway is not None or route.ifindex not in self._ifindexes:
            if real not in self._unreachable:
                _log.warning("real not on our links real=%s route=%s", real, route)
                self._unreachable.add(real)
            return
        self._unreachable.discard(real)
        try:
            await self._netlink.solicit(real, route.ifindex)
        except DataplaneError as error:
            _log.warning("neighbour solicitation failed real=%s error=%s", real, error)

    def _learn(self, event: NeighbourEvent) -> None:
        neighbour = event.neighbour
        if neighbour is None or event.ifindex not in self._ifindexes:
            return
        if self._known.get(event.address) != neighbour:
            self._known[event.address] = neighbour
            _log.info("neighbour real=%s mac=%s ifindex=%d", event.address, neighbour.mac, neighbour.ifindex)
            self._on_change(event.address, neighbour)
