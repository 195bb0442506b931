"""Keeps the data plane's knowledge of the way to the reals fresh: by netlink events, and a periodic look.

A real on one of our links is reached by its own MAC address; one beyond a router by the gateway's, if its
forwarding mode can cross a router. The tags that frames need come from the configured VLANs, or from the
VLAN device that the route leads to.

Packets that the XDP program sends bypass the kernel's neighbour code, so that the kernel would let the
entries grow stale for ever: whatever isn't confirmed lately is solicited again. What is known of a real is
kept until something better is known; whether the real answers at all is for the checks to find out.

Changes of links are only passed on: what they mean for the programs is for the driver to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.netlink import LinksChanged, NeighbourEvent, Netlink, RoutesChanged
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress, Vlan

_log = logging.getLogger(__name__)

REFRESH_S = 2.0
# After a change of routes: others mostly follow, and a router's table may never rest.
ROUTES_REST_S = 0.2

OnChange = Callable[[IPAddress, Neighbour | None], None]
OnLinks = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Way:
    """How frames get to a real: by `hop` (itself or a gateway), which the kernel knows on `resolve_on`; out
    of `ifindex`, with these tags.
    """

    hop: IPAddress
    resolve_on: int
    ifindex: int
    vlan: int | None
    svlan: int


class NeighbourWatch:
    """Tells `on_change` the way to each wanted real that is, or becomes, known.

    `ifindexes` are the interfaces that were named (bonds, not their members), the first of them the one that
    configured VLANs are on where the route doesn't say. `on_links` is called after every change of a link,
    and now and then, never twice at a time.
    """

    def __init__(
        self,
        netlink: Netlink,
        ifindexes: Sequence[int],
        on_change: OnChange,
        vlans: Sequence[Vlan] = (),
        on_links: OnLinks | None = None,
    ) -> None:
        self._netlink = netlink
        self._ifindexes = tuple(ifindexes)
        self._on_change = on_change
        self._vlans = vlans
        self._on_links = on_links
        self._wanted: frozenset[IPAddress] = frozenset()
        self._far: frozenset[IPAddress] = frozenset()
        self._ways: dict[IPAddress, _Way] = {}
        self._known: dict[IPAddress, Neighbour] = {}
        self._unreachable: set[IPAddress] = set()
        self._stale = asyncio.Event()
        self._links_stale = asyncio.Event()

    def want(self, reals: frozenset[IPAddress], far: frozenset[IPAddress] = frozenset()) -> None:
        """The reals to look after from now on; `far` ones may be beyond a router."""
        for gone in self._known.keys() - reals:
            del self._known[gone]
            self._ways.pop(gone, None)
        self._wanted, self._far = reals, far

    def set_vlans(self, vlans: Sequence[Vlan]) -> None:
        """The configured VLANs from now on; the ways to all reals are looked up anew, soon."""
        self._vlans = vlans
        self._stale.set()

    @property
    def complete(self) -> bool:
        """Whether the way to every wanted real is known."""
        return self._wanted <= self._known.keys()

    async def refresh(self) -> None:
        """One full look at routes and the neighbour table, soliciting all that isn't sure."""
        for real in self._wanted:
            await self._find_way(real)
        await self._look_up(list(self._ways.items()))

    async def look_for_new(self, enough: Callable[[], bool]) -> None:
        """A look at those of which nothing is known, until it is enough."""
        found: list[tuple[IPAddress, _Way]] = []
        for real in self._wanted - self._known.keys():
            if enough():
                break
            await self._find_way(real)
            if real in self._ways:
                found.append((real, self._ways[real]))
        if found:
            await self._look_up(found)

    async def _look_up(self, ways: Sequence[tuple[IPAddress, _Way]]) -> None:
        events = {(e.address, e.ifindex): e for e in await self._netlink.neighbours()}
        solicited: set[tuple[IPAddress, int]] = set()
        for real, way in ways:
            place = way.hop, way.resolve_on
            event = events.get(place)
            if event is not None:
                self._learn(real, way, event)
            if (event is None or not event.sure) and place not in solicited:
                solicited.add(place)
                await self._solicit(*place)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events(), name="neighbour events")
            group.create_task(self._refresh_for_ever(), name="neighbour refresh")
            if self._on_links is not None:
                group.create_task(self._pass_on_links(self._on_links), name="links")

    async def _follow_events(self) -> None:
        async for event in self._netlink.watch():
            if isinstance(event, RoutesChanged):
                self._stale.set()
                continue
            if isinstance(event, LinksChanged):
                self._links_stale.set()
                continue
            for real, way in list(self._ways.items()):
                if (way.hop, way.resolve_on) == (event.address, event.ifindex):
                    self._learn(real, way, event)

    async def _refresh_for_ever(self) -> None:
        while True:
            self._stale.clear()
            await self.refresh()
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._stale.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(ROUTES_REST_S)

    async def _pass_on_links(self, on_links: OnLinks) -> None:
        while True:
            self._links_stale.clear()
            await on_links()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._links_stale.wait()

    async def _find_way(self, real: IPAddress) -> None:
        route = await self._netlink.route_to(real)
        way = None
        if route is not None and (route.gateway is None or real in self._far):
            way = await self._way_by(route.gateway or real, route.ifindex)
        if way is not None:
            self._ways[real] = way
            self._unreachable.discard(real)
        elif real not in self._unreachable:
            self._unreachable.add(real)
            self._ways.pop(real, None)
            _log.warning("real can't be reached in its mode real=%s route=%s", real, route)

    async def _way_by(self, hop: IPAddress, ifindex: int) -> _Way | None:
        configured = next((vlan for vlan in self._vlans if hop in vlan.prefix), None)
        if configured is not None:
            out = ifindex if ifindex in self._ifindexes else self._ifindexes[0]
            return _Way(hop, ifindex, out, configured.id, configured.outer)
        if ifindex in self._ifindexes:
            return _Way(hop, ifindex, ifindex, 0 if self._vlans else None, 0)
        below = await self._netlink.vlan_below(ifindex)
        if below is not None and below[0] in self._ifindexes:
            return _Way(hop, ifindex, below[0], below[1], 0)
        return None

    async def _solicit(self, hop: IPAddress, ifindex: int) -> None:
        try:
            await self._netlink.solicit(hop, ifindex)
        except DataplaneError as error:
            _log.warning("neighbour solicitation failed hop=%s error=%s", hop, error)

    def _learn(self, real: IPAddress, way: _Way, event: NeighbourEvent) -> None:
        if event.neighbour is None:
            return
        neighbour = Neighbour(way.ifindex, event.neighbour.mac, way.hop == real, way.vlan, way.svlan)
        if self._known.get(real) != neighbour:
            self._known[real] = neighbour
            _log.info("neighbour real=%s hop=%s mac=%s", real, way.hop, neighbour.mac)
            self._on_change(real, neighbour)
