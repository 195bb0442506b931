"""Reads the whole flow table, a piece at a time: who has how many live flows, which slots have flows of other
backends than they name, and which entries have to go.

A *turn* is one pass over the table in the order of its sets. It is begun with all that it looks for, and what
it has found counts once it has ended: so a piece takes a millisecond or two, however large the table is.
Pure but for the entries that it empties. Knows nothing of services' records, nor of when it is called.

Entries change while a turn is under way. Each is read as a whole (both words, at once), and is emptied only
where it still is what was read. One that a newcomer moves to its other set (xdp/flow.h) may be missed: from
a later set to an earlier one that has been read already. What must not be missed is looked at in two turns,
both in ascending order, and one flow's entry would have to be moved three times (down, up and down again,
each at its moment) to be missed by both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi, flows
from vc5py.dataplane.looks import Look
from vc5py.dataplane.tables import first_slot, size

Owner = tuple[int, int]  # service index, local index

# An entry that hasn't been seen for so many ticks is emptied: no timeout is as long (ticks.TickClock.ticks),
# and at twice that age its 16 bits would say that it is young. There are nine hours for a turn in between.
GONE_TICKS = 0x8000

_LOCAL = np.uint64((1 << abi.FLOW_LOCAL_BITS) - 1)
_SERVICE = np.uint64((1 << abi.FLOW_SERVICE_BITS) - 1)
_STATE = np.uint64((1 << abi.FLOW_STATE_BITS) - 1)
_SERVICE_SHIFT = np.uint64(abi.FLOW_SERVICE_SHIFT)
_STATE_SHIFT = np.uint64(abi.FLOW_STATE_SHIFT)
_TICK_SHIFT = np.uint64(abi.FLOW_TICK_SHIFT)
_SLOT_SHIFT = np.uint64(40)  # hash_slot in xdp/hash.h


@dataclass(frozen=True, slots=True)
class Subject:
    """A service as a turn sees it: its index, how many backends it has room for, and its table (0: none, or
    its slots say nothing of its flows).
    """

    index: int
    room: int
    table: int = 0


class Turn:
    """One pass over the table, begun with what it looks for.

    `doomed`: owners all of whose entries go. `look`: the tables whose slots are looked at (`tables.Look`).
    `timeouts`: by state, in ticks. `patience`: ticks for which a flow that was seen once may be silent and
    still keep its slot unstable.
    """

    def __init__(
        self,
        table: NDArray[np.void],
        slots: NDArray[np.uint16],
        subjects: Iterable[Subject],
        doomed: Iterable[Owner],
        look: Look | None,
        timeouts: NDArray[np.uint16],
        patience: int,
    ) -> None:
        self._table = table
        self._slots = slots
        self._look = look
        self._timeouts = timeouts.copy()
        # A flow seen in two ticks may have an entry of another backend for as long as an established one:
        # through a stable slot few of its packets are seen. One that was seen once may be silent for as long
        # as a slot takes to settle.
        self._patient = timeouts.copy()
        self._patient[abi.FlowState.UNPROVEN] = max(timeouts[abi.FlowState.UNPROVEN], patience)
        self._patient[abi.FlowState.PROVING] = timeouts.max()
        self._next = 0
        self._number(list(subjects), list(doomed))

    def _number(self, subjects: list[Subject], doomed: list[Owner]) -> None:
        """Numbers the owners, and the slots that are looked at, one after the other."""
        rooms = {subject.index: subject.room for subject in subjects}
        for index, local in doomed:
            rooms[index] = max(rooms.get(index, 0), local + 1)
        self._first = np.full(abi.MAX_SERVICES, -1, dtype=np.int64)
        self._room = np.zeros(abi.MAX_SERVICES, dtype=np.uint64)
        indices = np.fromiter(rooms.keys(), np.int64, len(rooms))
        room = np.fromiter(rooms.values(), np.int64, len(rooms))
        self._first[indices] = np.cumsum(room) - room
        self._room[indices] = room
        self.counts = np.zeros(int(room.sum()), dtype=np.int64)
        self._doomed = np.zeros(len(self.counts), dtype=bool)
        for index, local in doomed:
            self._doomed[self._first[index] + local] = True
        self._any_doomed = bool(doomed)
        self._mark = np.full(abi.MAX_SERVICES, -1, dtype=np.int64)  # where the look has marks of its slots
        self._slot = np.zeros(abi.MAX_SERVICES, dtype=np.int64)
        self._mask = np.zeros(abi.MAX_SERVICES, dtype=np.uint64)
        for subject in subjects:
            start = self._look.start_of(subject.table) if self._look else None
            if start is not None:
                self._mark[subject.index] = start
                self._slot[subject.index] = first_slot(subject.table)
                self._mask[subject.index] = size(subject.table) - 1

    @property
    def share(self) -> float:
        """How much of the table has been read, 0 to 1."""
        return self._next / len(self._table)

    @property
    def done(self) -> bool:
        return self._next >= len(self._table)

    def close(self) -> None:
        """Keeps nothing but the counts."""
        self._look = None

    def spare(self, owner: Owner) -> None:
        """An owner that was doomed lives after all."""
        index, local = owner
        self._doomed[self._first[index] + local] = False

    def counts_of(self, index: int) -> NDArray[np.int64]:
        """Live flows of the service by local index, of what has been read so far; empty where the service
        wasn't there yet when the turn began.
        """
        first = int(self._first[index])
        return self.counts[first : first + int(self._room[index])] if first >= 0 else self.counts[:0]

    def count_of(self, index: int, local: int) -> int:
        """The same of one backend; 0 where it wasn't there yet."""
        first = self._first[index]
        return int(self.counts[first + local]) if first >= 0 and local < self._room[index] else 0

    def advance(self, sets: int, tick: int) -> None:
        """Reads the next sets; `tick`: what time it is now."""
        part = self._table[self._next : self._next + sets].reshape(-1)
        self._next += sets
        entries = part.copy()  # both words of an entry in one go
        values = np.ascontiguousarray(entries["value"])
        used = np.flatnonzero(values.view(np.int64) < 0)  # FLOW_VALID is the sign
        if len(used) < len(values):
            values = values[used]
        if len(values):
            self._read(part, entries, used, values, tick)

    def _read(
        self,
        part: NDArray[np.void],
        entries: NDArray[np.void],
        used: NDArray[np.int64],
        values: NDArray[np.uint64],
        tick: int,
    ) -> None:
        service = (values >> _SERVICE_SHIFT & _SERVICE).astype(np.int64)
        local = values & _LOCAL
        age = flows.ages(values, tick)
        alive = age <= self._timeouts[(values >> _STATE_SHIFT & _STATE).astype(np.int64)]
        owner = self._first[service] + local.astype(np.int64)
        known = local < self._room[service]
        gone = age > GONE_TICKS
        if self._any_doomed:
            gone |= self._doomed[np.where(known, owner, 0)] & known
        self.counts += np.bincount(owner[known & alive & ~gone], minlength=len(self.counts))
        if self._look is not None:
            at = np.flatnonzero((self._mark[service] >= 0) & ~gone)
            hashes = values[at] ^ entries["tag"][used[at]]
            self._look_at(part, used[at], values[at], hashes, service[at], age[at])
        where = np.flatnonzero(gone)
        if len(where):
            empty(part, used[where], values[where])

    def _look_at(
        self,
        part: NDArray[np.void],
        at: NDArray[np.int64],
        values: NDArray[np.uint64],
        hashes: NDArray[np.uint64],
        service: NDArray[np.int64],
        age: NDArray[np.uint16],
    ) -> None:
        """Marks the slots with live flows of other backends; empties the entries of dead ones whose slot was
        calm. A flow that comes back after its time, or a client's port used again, then follows the slot
        from its first packet on, as all but its sampled packets will.
        """
        assert self._look is not None
        slot = (hashes >> _SLOT_SHIFT & self._mask[service]).astype(np.int64)
        named = self._slots[self._slot[service] + slot]
        state = values >> _STATE_SHIFT & _STATE
        stray = (named & abi.SLOT_NONE != values & _LOCAL) & (state != abi.FlowState.FRAGMENT)
        stray &= named & abi.SLOT_UNSTABLE != 0
        found = np.flatnonzero(stray)
        marks = self._mark[service[found]] + slot[found]
        alive = age[found] <= self._patient[state[found].astype(np.int64)]
        self._look.hit(marks[alive])
        dead = ~alive & self._look.calm(marks)
        if dead.any():
            emptied = empty(part, at[found[dead]], values[found[dead]])
            self._look.hit(marks[dead][~emptied])  # it has come back this moment


def empty(part: NDArray[np.void], at: NDArray[np.int64], values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Empties the entries that still have these values; says which. `part` is flat."""
    current = part["value"]
    same: NDArray[np.bool_] = current[at] == values
    current[at[same]] = 0
    return same
