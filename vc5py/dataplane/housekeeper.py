"""Keeps order in the flow table a little at a time: turn after turn (`sweep`), in a bounded time per call.

A turn frees places of backends and services that have gone (their entries are emptied first), lets Maglev
tables settle, and counts flows. It begins when one of these waits for it, else after a rest. Who reads the
counts gets those of the last whole turn. Knows the order of these things, not what services are.

Invariant: a place is given back by a turn that began after its quarantine, so that no packet on its way can
leave an entry behind that names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane.allocate import Quarantine
from vc5py.dataplane.looks import Look
from vc5py.dataplane.maps import Maps
from vc5py.dataplane.policy import Pace
from vc5py.dataplane.sweep import Owner, Subject, Turn
from vc5py.dataplane.tables import TableArena

# Loads follow what was read last; of a large table an eighth of it is averaged.
_SMOOTHING = 8


@dataclass(slots=True)
class Freed:
    """What nothing refers to any more, and may be used again."""

    locals: list[Owner] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)


class Housekeeper:
    """`quarantine_s`: how long a packet may be on its way, at most, with what it has read of the maps.
    `patience`: ticks (`sweep.Turn`).
    """

    def __init__(
        self, maps: Maps, tables: TableArena, quarantine_s: float, pace: Pace, patience: int
    ) -> None:
        self._maps = maps
        self._tables = tables
        self._pace = pace
        self._patience = patience
        self._resting_locals = Quarantine(quarantine_s)  # (service index, local)
        self._resting_indices = Quarantine(quarantine_s)  # (service index, 1)
        self._leaving = Freed()  # what the present turn frees
        self._turn: Turn | None = None
        self._look: Look | None = None
        self._ending: Iterator[None] | None = None
        self.counted: Turn | None = None  # the last whole turn
        self._began = float("-inf")
        self.counted_at: float | None = None  # when that began
        self._loads: dict[int, NDArray[np.float64]] = {}
        self._read: dict[int, NDArray[np.int64]] = {}  # what the present turn had counted at the last call
        self._read_share = 0.0

    # What leaves

    def retire(self, owner: Owner, now: float) -> None:
        """A backend of a service is gone."""
        self._resting_locals.add(*owner, now)

    def retire_service(self, index: int, now: float) -> None:
        """A service is gone, and before it all of its backends."""
        self._resting_indices.add(index, 1, now)

    def revive(self, owner: Owner) -> None:
        """A backend that was gone is there again, at its old place."""
        self._resting_locals.cancel(*owner)
        if owner in self._leaving.locals:
            self._leaving.locals.remove(owner)
            if self._turn is not None:
                self._turn.spare(owner)

    def start_again(self) -> None:
        """What the present turn has found counts for nothing: what it went by has changed."""
        if self._turn is not None:
            self._began = float("-inf")
        self._turn = self._look = self._ending = None

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._turn is not None

    # The work

    def work(
        self, now: float, tick: int, subjects: Callable[[], Sequence[Subject]], weighed: Sequence[int]
    ) -> Freed:
        """Goes on with the present turn, or begins one; returns what a turn that has ended frees.

        `weighed`: services whose loads are needed; where there are any, turn follows turn. Takes as long as
        `Pace` says.
        """
        until = time.perf_counter() + self._pace.budget_s
        if self._turn is None and not self._begin(now, subjects, bool(weighed)):
            return Freed()
        assert self._turn is not None
        turn = self._turn
        while not turn.done:
            turn.advance(self._pace.sets, tick)
            if time.perf_counter() >= until:
                break
        self._follow_loads(turn, weighed)
        if not turn.done:
            return Freed()
        self._ending = self._ending or (self._tables.conclude(self._look, now) if self._look else iter(()))
        for _ in self._ending:
            if time.perf_counter() >= until:
                return Freed()
        return self._end(turn)

    def _begin(self, now: float, subjects: Callable[[], Sequence[Subject]], hurry: bool) -> bool:
        self._leaving.locals += self._resting_locals.release(now)
        self._leaving.indices += [index for index, _ in self._resting_indices.release(now)]
        self._look = self._tables.look(now)
        waits = self._look is not None or self._leaving.locals or self._leaving.indices or hurry
        if not waits and now < self._began + self._pace.rest_s:
            return False
        self._began = now
        self._turn = Turn(
            self._maps.flows,
            self._maps.slots.reshape(-1),
            subjects(),
            self._leaving.locals,
            self._look,
            self._maps.settings["timeout"][0],
            self._patience,
        )
        self._read, self._read_share = {}, 0.0
        return True

    def _end(self, turn: Turn) -> Freed:
        turn.close()
        self.counted, self.counted_at = turn, self._began
        self._turn = self._look = self._ending = None
        freed, self._leaving = self._leaving, Freed()
        return freed

    # Loads

    def _follow_loads(self, turn: Turn, weighed: Sequence[int]) -> None:
        """Takes what was read since the last call for the whole: flows are spread evenly over the table."""
        before, self._loads = self._loads, {}
        for index in weighed:
            known = self._read.get(index)
            share = turn.share - (self._read_share if known is not None else 0.0)
            counts, old = turn.counts_of(index), before.get(index)
            if not share or not len(counts):
                self._loads[index] = np.zeros(0) if old is None else old
                continue
            load = (counts - (0 if known is None else known)) / share
            if old is not None and len(old) == len(load):
                load = old + min(1.0, share * _SMOOTHING) * (load - old)
            self._loads[index], self._read[index] = load, counts.copy()
        self._read_share = turn.share

    def load_of(self, index: int) -> NDArray[np.float64]:
        """About how many live flows a weighed service has now, by local index; may end before the last."""
        return self._loads.get(index, np.zeros(0))
