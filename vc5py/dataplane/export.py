"""Which flows other balancers are to be told of: those that have just changed, and bit by bit all others.

What has changed comes from the rings that the CPUs write (xdp/share.h); what is missed there comes with the
next walk through the flow table, which repeats every live flow. Reads shared memory, and writes nothing but
how far it has read; runs in a process of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vc5py.core.flowsync import NO_RECORDS, RECORD, Records
from vc5py.dataplane import abi, flows
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.names import NOBODY, Names
from vc5py.dataplane.ticks import TickClock

_STATE = np.uint64((1 << abi.FLOW_STATE_BITS) - 1)
_MAX_AGE_S = 0xFFFF


class Exporter:
    """`missed`: changed flows that were written over before they were read."""

    def __init__(self, maps: Maps, names: Names, ticks: TickClock) -> None:
        self._maps = maps
        self._names = names
        self._ticks = ticks
        self.missed = 0

    # What has changed

    def changed(self, limit: int) -> Records:
        """At most so many flows of every CPU, in the order of the changes; one may come several times."""
        found = [self._read_ring(cpu, limit) for cpu in range(self._maps.sizes.cpus)]
        entries = np.concatenate([entries for entries in found if len(entries)] or found[:1])
        values = entries["value"].copy()
        return self._records(values, values ^ entries["tag"])

    def _read_ring(self, cpu: int, limit: int) -> NDArray[np.void]:
        head, ring = self._maps.flow_log_heads[cpu : cpu + 1], self._maps.flow_log[cpu]
        size = len(ring)
        written, read = int(head["written"][0]), int(head["read"][0])
        if written < read:  # two CPUs share the ring, and the slower one has stored its own count
            self.missed += read - written
            read = written
        first = max(read, written - size)
        last = min(written, first + limit)
        entries = ring[np.arange(first, last) & size - 1]
        late = max(0, int(head["written"][0]) - size - first)  # written over while we were reading
        self.missed += first - read + min(late, last - first)
        head["read"] = last
        current: NDArray[np.void] = entries[late:]
        return current

    # All others

    def part(self, start: int, sets: int, *, learned: bool) -> Records:
        """The live flows in a part of the table. `learned`: those too that we know only from others."""
        part = self._maps.flows[start : start + sets].reshape(-1).copy()
        values = part["value"]
        wanted = flows.live(values, self._maps.settings["timeout"][0], self._ticks.now())
        if not learned:
            wanted &= values & np.uint64(abi.FLOW_LEARNED) == 0
        values = values[wanted]
        return self._records(values, values ^ part["tag"][wanted])

    def live_share(self) -> float:
        """How much of the table is live, about."""
        timeouts = self._maps.settings["timeout"][0]
        return flows.live_share(self._maps.flows, 1 << 10, timeouts, self._ticks.now())

    def _records(self, values: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> Records:
        if not len(values):
            return NO_RECORDS
        state = values >> np.uint64(abi.FLOW_STATE_SHIFT) & _STATE
        identities = self._names.identities(values)
        wanted = np.flatnonzero((identities != NOBODY) & (state != abi.FlowState.FRAGMENT))
        records = np.zeros(len(wanted), RECORD)
        age = flows.ages(values[wanted], self._ticks.now()) * self._ticks.tick_s
        records["hash"], records["identity"] = hashes[wanted], identities[wanted]
        records["age"] = np.minimum(np.rint(age), _MAX_AGE_S)
        records["state"] = state[wanted]
        return records


class Walk:
    """One walk after another through the whole flow table, a part at a time."""

    def __init__(self, exporter: Exporter, sets: int, *, learned: bool = False) -> None:
        self._exporter = exporter
        self._sets = sets
        self._learned = learned
        self._next = 0
        self._owed = 0.0

    def advance(self, share: float, most: int) -> Records:
        """The flows in the next `share` (0 to 1) of the table, in `most` sets at most."""
        self._owed = min(self._owed + share * self._sets, float(most))
        sets = min(int(self._owed), self._sets - self._next)
        if not sets:
            return NO_RECORDS
        self._owed -= sets
        records = self._exporter.part(self._next, sets, learned=self._learned)
        self._next = (self._next + sets) % self._sets
        return records

    @property
    def at_start(self) -> bool:
        """Whether a walk has just ended, or none has begun."""
        return self._next == 0
