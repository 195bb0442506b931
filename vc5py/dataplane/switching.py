"""Which Maglev tables a service's packets go by: switched from one to the next, disturbed, given back.

Knows services' records and the arena; not records of backends nor keys. Invariants: what the slots named
before is there before the slots that refer to it; a service goes by flow for as long as its slots say nothing
of its flows; all services that share a table have the same past.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vc5py.core.identity import real_identity
from vc5py.dataplane import abi
from vc5py.dataplane.installed import Installed
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.sweep import Subject
from vc5py.dataplane.tables import NO_TABLES, Members, TableArena, Tables, lines_for, lines_promised
from vc5py.model import BackendState, ServiceState

_real_identity = lru_cache(maxsize=1 << 16)(real_identity)


class Switching:
    """`shared`: flows may be known to other balancers that we don't know of. `lossy`: whether the flow table
    may have lost flows lately, at that time.
    """

    def __init__(
        self, maps: Maps, tables: TableArena, *, shared: bool, lossy: Callable[[float], bool]
    ) -> None:
        self._services = maps.services
        self._tables = tables
        self._shared = shared
        self._lossy = lossy

    def switch(
        self, service: Installed, state: ServiceState, named: Sequence[tuple[BackendState, int]], now: float
    ) -> None:
        """To the table of those that are up. `named`: the backends with their identities."""
        members: Members = tuple(
            (service.locals[name], _real_identity(b.id.real), b.weight)
            for b, name in named
            if b.up and b.weight
        )
        flags = self._services["flags"]
        was, will = int(flags[service.index]), abi.SCHEDULING_FLAGS[state.scheduling]
        flags[service.index] = was | will & abi.SERVICE_BY_FLOW  # not less before the slots say so
        by_flow = bool(was & ~will & abi.SERVICE_BY_FLOW)
        if (members, len(state.backends)) != service.shape or by_flow:
            draining = any(b.up for b in state.backends)
            self._exchange(service, (members, len(state.backends)), now, by_flow=by_flow, draining=draining)
        flags[service.index] = will

    def _exchange(
        self, service: Installed, shape: tuple[Members, int], now: float, *, by_flow: bool, draining: bool
    ) -> None:
        """`by_flow`: until now the slots have said nothing of flows. `draining`: somebody is up, so that a
        table of nobody still leads packets of connections to where its slots led before.
        """
        members, reals = shape
        before, tables = service.tables, NO_TABLES
        self._promise(service, lines_promised(lines_for(reals), before))
        if members or (draining and before.current):
            tables = self._tables.acquire(
                members,
                reals,
                before,
                now,
                remember=self._lossy(now),
                unsure=by_flow or ((service.served or self._shared) and not before.current),
            )
        service.served = True
        record = self._services[service.index : service.index + 1]
        if tables.previous:  # before the slots that refer to it
            record["previous"] = tables.previous
        record["table"] = tables.current
        record["previous"] = tables.previous
        self._tables.commit(tables)
        self._tables.release(before, now)
        service.tables, service.shape = tables, shape

    def _promise(self, service: Installed, lines: int) -> None:
        """Room for whatever the health of its reals may make of it, whether any is up now or not."""
        self._tables.promise(lines, service.promised)
        service.promised = lines

    def leave(self, service: Installed, now: float) -> None:
        """Nothing leads to the service's tables any more."""
        self._tables.release(service.tables, now)
        self._promise(service, 0)

    def disturb(self, services: Collection[Installed], strays: NDArray[np.uint32], now: float) -> None:
        """The flow table has got flows of other balancers in slots that name other backends. By flow: index
        of the service (high 16 bits) and the bits of the hash that its slot is taken from (low 16 bits).
        """
        by_index = {service.index: service for service in services}
        indices = strays >> np.uint32(16)
        for index in np.unique(indices).tolist():
            service = by_index.get(index)
            if service is None or int(self._services["flags"][index]) & abi.SERVICE_BY_FLOW:
                continue
            places = (strays[indices == index] & np.uint32(0xFFFF)).astype(np.int64)
            before = service.tables
            after = self._tables.disturb(before, places, now)
            if after != before:
                self._exchange_previous(services, before, after)

    def _exchange_previous(self, services: Collection[Installed], before: Tables, after: Tables) -> None:
        """Of all services that share the tables."""
        for service in services:
            if service.tables == before:
                self._services["previous"][service.index] = after.previous
                service.tables = after

    def subjects(self, services: Collection[Installed]) -> list[Subject]:
        """Which services' slots may have flows of other backends than they name: of all but those that go by
        flow.
        """
        by_flow = (self._services["flags"] & abi.SERVICE_BY_FLOW != 0).tolist()
        return [Subject(s.index, s.room, 0 if by_flow[s.index] else s.tables.current) for s in services]
