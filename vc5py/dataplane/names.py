"""Which backend an entry of the flow table means, by names that all balancers have in common, and back.

Reads services and backends from the maps, so it can be used beside the process that writes them. What it
knows may be a moment old: places are used again only after a while, and whoever writes entries by it must
look again (xdp/learn.h does).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi
from vc5py.dataplane.maps import Maps

NOBODY = np.uint32(0)  # no backend's identity
_LOCAL = (1 << abi.FLOW_LOCAL_BITS) - 1
_SERVICE = (1 << abi.FLOW_SERVICE_BITS) - 1
_OWNER = np.uint64((1 << abi.FLOW_LOCAL_BITS + abi.FLOW_SERVICE_BITS) - 1)
_UNKNOWN = np.uint32(0xFFFFFFFF)  # no owner: they have 28 bits


class Names:
    """Call `refresh` now and then."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._seen: tuple[NDArray[np.uint64], ...] = ()
        self._names = np.zeros(0, dtype=np.uint32)
        self.ambiguous = 0  # backends that have their 32 bits in common with another one
        self.refresh()

    def refresh(self) -> bool:
        """Reads the maps again; cheap where nothing has changed. Returns whether there are new names."""
        services, backends = self._maps.services, self._maps.backends
        seen = (
            services["identity"].copy(),
            services["backends"].copy(),
            backends["identity"].copy(),
            backends["link"] >> np.uint64(48) & np.uint64(abi.BACKEND_RESTING),
        )
        if self._seen and all(np.array_equal(a, b) for a, b in zip(seen, self._seen, strict=True)):
            return False
        self._seen = seen
        before = self._names
        self._number(*seen)
        return not np.isin(self._names, before).all()

    def _number(
        self,
        services: NDArray[np.uint64],
        runs: NDArray[np.uint64],
        backends: NDArray[np.uint64],
        resting: NDArray[np.uint64],
    ) -> None:
        indices = np.flatnonzero(services)
        base = (runs[indices] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        room = (runs[indices] >> np.uint64(abi.BACKEND_ROOM_SHIFT)).astype(np.int64)
        first = np.cumsum(room) - room
        self._first = np.zeros(abi.MAX_SERVICES, dtype=np.int64)
        self._room = np.zeros(abi.MAX_SERVICES, dtype=np.int64)
        self._first[indices], self._room[indices] = first, room
        local = np.arange(int(room.sum())) - np.repeat(first, room)
        rows = np.repeat(base, room) + local
        rows = np.minimum(rows, len(backends) - 1)
        identities = np.where(resting[rows] == 0, backends[rows], np.uint64(0)).astype(np.uint32)
        self._identities = np.append(identities, NOBODY)  # the last one for what is out of bounds
        owners = (np.repeat(indices, room) << abi.FLOW_SERVICE_SHIFT | local).astype(np.uint32)
        self._index(identities, owners)

    def _index(self, identities: NDArray[np.uint32], owners: NDArray[np.uint32]) -> None:
        used = np.flatnonzero(identities)
        order = used[np.argsort(identities[used], kind="stable")]
        names, starts, counts = np.unique(identities[order], return_index=True, return_counts=True)
        self.ambiguous = int(counts[counts > 1].sum())
        self._names = np.append(names, np.uint32(0xFFFFFFFF))
        self._owners = np.append(np.where(counts == 1, owners[order][starts], _UNKNOWN), _UNKNOWN)

    def identities(self, values: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Of the backends that entries name; NOBODY where there is none any more."""
        owner = values & _OWNER
        service = (owner >> np.uint64(abi.FLOW_SERVICE_SHIFT)).astype(np.int64) & _SERVICE
        local = owner.astype(np.int64) & _LOCAL
        known = local < self._room[service]
        found: NDArray[np.uint32] = self._identities[np.where(known, self._first[service] + local, -1)]
        return found

    def owners(self, identities: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Service and backend as entries have them, and for which identities there is exactly one such."""
        at = np.minimum(np.searchsorted(self._names, identities), len(self._owners) - 1)
        owners = self._owners[at]
        return owners, (self._names[at] == identities) & (owners != _UNKNOWN)
