"""Keeps the data plane's knowledge of the way to the reals fresh: by netlink events, and a periodic look.

A real on one of our links is reached by its own MAC address; one beyond a router by the gateway's, if its
forwarding mode can cross a router. The tags that frames need come from the configured VLANs, or from the
VLAN device that the route leads to. Tunnels are sent from the address that the kernel would send from.

Packets that the XDP program sends bypass the kernel's neighbour code, so that the kernel would let the
entries grow stale for ever: whatever isn't confirmed lately is solicited again. What is known of a real is
kept until something better is known; whether the real answers at all is for the checks to find out.

There may be tens of thousands of reals, and all of them behind one gateway: whatever is done for each of them
gives everybody else a turn now and then, and looks take up a small share of the time.

Changes of links are only passed on: what they mean for the programs is for the driver to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from vc5py.dataplane import lookups
from vc5py.dataplane.base import Neighbour
from vc5py.dataplane.lookups import AT_ONCE, Place
from vc5py.dataplane.netlink import Netlink
from vc5py.dataplane.rtnetlink import LinksChanged, NeighbourEvent, Route, RoutesChanged
from vc5py.errors import DataplaneError
from vc5py.model import IPAddress, Vlan

_log = logging.getLogger(__name__)

REFRESH_S = 2.0
# After a change of routes: others mostly follow, and a router's table may never rest.
ROUTES_REST_S = 0.2
REST_PER_LOOK = 10
"""The time between two looks that nothing asks for is at least so many times that of a look."""

OnChange = Callable[[IPAddress, Neighbour | None], None]
OnLinks = Callable[[], Awaitable[None]]
_Below = dict[int, tuple[int, int] | None]
"""What is known of VLAN devices, for one look: the interface below each, and its tag."""


def _usable(source: IPAddress | None) -> IPAddress | None:
    """What may be in an outer header: whoever answers may be beyond a router."""
    return None if source is None or source.is_link_local else source


@dataclass(frozen=True, slots=True)
class _Way:
    """How frames get to a real: by `hop` (itself or a gateway), which the kernel knows on `resolve_on`; out
    of `ifindex`, with these tags; from `source`, if it needs an outer header.
    """

    hop: IPAddress
    resolve_on: int
    ifindex: int
    vlan: int | None
    svlan: int
    source: IPAddress | None

    @property
    def place(self) -> Place:
        return self.hop, self.resolve_on


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
        self._tunnelled: frozenset[IPAddress] = frozenset()
        self._ways: dict[IPAddress, _Way] = {}
        self._behind: dict[Place, set[IPAddress]] = defaultdict(set)  # reals by the place of their ways
        self._macs: dict[Place, str] = {}
        self._known: dict[IPAddress, Neighbour] = {}
        self._unreachable: set[IPAddress] = set()
        self._sourceless: set[IPAddress] = set()  # those by tunnels that can't be sent
        self._warned = ""
        self._trouble: frozenset[str] = frozenset()
        self._stale = asyncio.Event()
        self._links_stale = asyncio.Event()
        self._look_s = 0.0

    def want(
        self,
        reals: frozenset[IPAddress],
        far: frozenset[IPAddress] = frozenset(),
        tunnelled: frozenset[IPAddress] = frozenset(),
    ) -> None:
        """The reals to look after from now on; `far` ones may be beyond a router, `tunnelled` ones need an
        address of ours to send from.
        """
        for gone in (self._known.keys() | self._ways.keys() | self._unreachable) - reals:
            self._known.pop(gone, None)
            self._unreachable.discard(gone)
            self._set_way(gone, None)
        if (reals, far, tunnelled) != (self._wanted, self._far, self._tunnelled):
            self._stale.set()
        self._wanted, self._far, self._tunnelled = reals, far, tunnelled
        self._sourceless &= tunnelled

    def set_vlans(self, vlans: Sequence[Vlan]) -> None:
        """The configured VLANs from now on; the ways to all reals are looked up anew, soon."""
        self._vlans = vlans
        self._stale.set()

    @property
    def vlans(self) -> Sequence[Vlan]:
        """Those configured now."""
        return self._vlans

    def exit_to(self, real: IPAddress) -> int | None:
        """The interface, of those named, by which packets leave for a real, as far as that is known."""
        neighbour = self._known.get(real)
        return None if neighbour is None else neighbour.ifindex

    @property
    def complete(self) -> bool:
        """Whether the way to every wanted real is known."""
        return self._wanted <= self._known.keys()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of: nothing gets to some reals, whatever their checks say."""
        said = []
        if self._sourceless:
            first = min(self._sourceless, key=lambda real: (real.version, real.packed))
            said.append(
                f"no IPv{first.version} address of ours to send tunnels from, as the routes are:"
                f" nothing gets to real={first} others={len(self._sourceless) - 1}"
            )
        return tuple(said)

    def _warn(self) -> None:
        """Once, and again when it is another."""
        now = "; ".join(self.warnings)
        if now and now != self._warned:
            _log.warning("%s", now)
        elif self._warned and not now:
            _log.info("all tunnels have an address of ours to be sent from")
        self._warned = now

    async def refresh(self) -> None:
        """One full look at routes and the neighbour table, soliciting all that isn't sure."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await self._find_ways(list(self._wanted), lambda: False)
        self._warn()
        unsure = await self._look_up(set(self._behind))
        self._look_s = loop.time() - begun
        await self._solicit(unsure)

    async def look_for_new(self, enough: Callable[[], bool]) -> None:
        """A look at those of which nothing is known, until it is enough: a full look follows then."""
        found = await self._find_ways(list(self._wanted - self._known.keys()), enough)
        if found and not enough():
            await self._solicit(await self._look_up(found))

    async def _find_ways(self, reals: Sequence[IPAddress], enough: Callable[[], bool]) -> set[Place]:
        """Where the ways to these lead, as far as that is found out until it is enough."""
        found: set[Place] = set()
        below: _Below = {}
        async with contextlib.aclosing(lookups.routes_to(reals)) as routes:
            async for real, route in routes:
                if enough():
                    break
                if real in self._wanted:
                    way = await self._way_to(real, route, below)
                    self._note_way(real, route, way)
                    found |= {way.place} if way is not None else set()
        return found

    async def _look_up(self, places: set[Place]) -> set[Place]:
        """Learns what the neighbour table has of them; returns those that aren't sure."""
        unsure = set(places)
        async with contextlib.aclosing(lookups.neighbours()) as table:
            async for events in table:
                wanted = [event for event in events if (event.address, event.ifindex) in places]
                unsure -= {(event.address, event.ifindex) for event in wanted if event.sure}
                await self._learn(wanted)
        return unsure

    async def _solicit(self, places: Iterable[Place]) -> None:
        refused = await lookups.solicit([place for place in places if place in self._behind])
        self._say(f"neighbours not solicited first={hop} error={why}" for (hop, _), why in refused)

    def _say(self, trouble: Iterable[str]) -> None:
        """Once, and again when it is another."""
        first = next(iter(trouble), None)
        now = frozenset() if first is None else frozenset({first.partition("error=")[2]})
        if first is not None and now != self._trouble:
            _log.warning("%s", first)
        self._trouble = now

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events(), name="neighbour events")
            group.create_task(self._refresh_for_ever(), name="neighbour refresh")
            if self._on_links is not None:
                group.create_task(self._pass_on_links(self._on_links), name="links")

    async def _follow_events(self) -> None:
        async for event in lookups.watch():
            match event:
                case RoutesChanged():
                    self._stale.set()
                case LinksChanged():
                    self._links_stale.set()
                case NeighbourEvent():
                    await self._learn([event])

    async def _refresh_for_ever(self) -> None:
        while True:
            self._stale.clear()
            try:
                await self.refresh()
            except DataplaneError as error:
                self._say([f"neighbours not looked up error={error}"])
            try:
                async with asyncio.timeout(max(REFRESH_S, REST_PER_LOOK * self._look_s)):
                    await self._stale.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(max(ROUTES_REST_S, self._look_s))

    async def _pass_on_links(self, on_links: OnLinks) -> None:
        while True:
            self._links_stale.clear()
            await on_links()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._links_stale.wait()

    # Ways

    async def _way_to(self, real: IPAddress, route: Route | None, below: _Below) -> _Way | None:
        if route is None or (route.gateway is not None and real not in self._far):
            return None
        hop, source = route.gateway or real, _usable(route.source)
        exit_by, vlan = await self._exit_of(route.ifindex, below)
        configured = next((vlan for vlan in self._vlans if hop in vlan.prefix), None)
        if configured is not None:
            out = self._ifindexes[0] if exit_by is None else exit_by
            return _Way(hop, route.ifindex, out, configured.id, configured.outer, source)
        if exit_by is None:
            return None
        return _Way(hop, route.ifindex, exit_by, vlan, 0, source)

    async def _exit_of(self, ifindex: int, below: _Below) -> tuple[int | None, int | None]:
        """Our interface by which frames leave that a route sends to this one, None if that isn't known; and
        the tag that they need there, where nobody has configured it.
        """
        if ifindex in self._ifindexes:
            return ifindex, 0 if self._vlans else None
        if ifindex not in below:
            below[ifindex] = await self._netlink.vlan_below(ifindex)
        device = below[ifindex]
        return device if device is not None and device[0] in self._ifindexes else (None, None)

    def _note_way(self, real: IPAddress, route: Route | None, way: _Way | None) -> None:
        if way is not None:
            self._unreachable.discard(real)
        elif real not in self._unreachable:
            self._unreachable.add(real)
            _log.warning("real can't be reached in its mode real=%s route=%s", real, route)
        if way is not None and way.source is None and real in self._tunnelled:
            self._sourceless.add(real)
        else:
            self._sourceless.discard(real)
        self._set_way(real, way)

    def _set_way(self, real: IPAddress, way: _Way | None) -> None:
        before = self._ways.get(real)
        if way == before:
            return
        if before is not None:
            self._behind[before.place].discard(real)
            if not self._behind[before.place]:
                del self._behind[before.place]
                self._macs.pop(before.place, None)
        if way is None:
            self._ways.pop(real, None)
            return
        self._ways[real] = way
        self._behind[way.place].add(real)
        self._tell(real, way)

    # MAC addresses

    async def _learn(self, events: Iterable[NeighbourEvent]) -> None:
        """Of all reals behind the places. All is taken in before others get a turn, as it is how things are
        now; what is learned meanwhile is told to those who haven't been told yet.
        """
        reals: list[IPAddress] = []
        for event in events:
            place = event.address, event.ifindex
            if event.neighbour is not None and place in self._behind:
                self._macs[place] = event.neighbour.mac
                reals += self._behind[place]
        for n, real in enumerate(reals, 1):
            way = self._ways.get(real)
            if way is not None:
                self._tell(real, way)
            if n % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _tell(self, real: IPAddress, way: _Way) -> None:
        mac = self._macs.get(way.place)
        if mac is None:
            return
        neighbour = Neighbour(way.ifindex, mac, way.hop == real, way.vlan, way.svlan, way.source)
        if self._known.get(real) != neighbour:
            self._known[real] = neighbour
            _log.info("neighbour real=%s hop=%s mac=%s", real, way.hop, mac)
            self._on_change(real, neighbour)
