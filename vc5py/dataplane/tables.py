"""The Maglev tables in the slot arena, and what their slots named before they changed.

A slot is *stable* while every live flow in it belongs to the backend that it names; the data plane then
doesn't look into the flow table. Whoever changes a table writes a new one beside it with every changed slot
unstable, and a second one that says what the stable ones among those named before: packets went there without
being recorded, so that is where they still go where the flow table doesn't know them, unless they start a
connection. What has been sent through an unstable slot is recorded, so that for a slot that changes again
nothing more is remembered, except while the flow table may have had no room. What it doesn't know is then no
connection of ours but one that has moved here from another balancer, whose table is like our present one.
After the settling time a slot without a live flow of another backend becomes stable again, in two steps, each
the outcome of a *look*, that is of one whole reading of the flow table (`sweep`): first the slot is closed,
nothing more is sent to the previous backend. A look that begins a while later empties the entries that other
backends' dead flows have in closed slots, and where it finds no live one, nothing more is looked up.

Why two looks, however long each takes: into a closed slot no entry of another backend comes any more, what is
there is either seen alive by the second look, wherever that is in the table just then, or emptied by it.

Invariant: tables that packets may still use are not written, but for these two steps; freed lines are used
again only after a quarantine (cut short where there is no other room: a packet needs microseconds from its
service to its slot). A table's size follows the number of a service's reals, whether they are up or not: one
of another size moves nearly all flows that aren't recorded. Services with the same reals and the same past
share tables, as long as none of these has been looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.errors import DataplaneError

# (local index, identity of the real, weight) of every backend that takes new flows.
Members = tuple[tuple[int, int, int], ...]
Slots = NDArray[np.uint16]

# Between the two steps of settling: a packet needs microseconds. And until the next look where all that is
# left are live flows, which may last for long: a look reads the whole flow table.
SETTLE_STEP_S = 1.0
SETTLE_RETRY_S = 10.0

LOOK_SLOTS = 1 << 24  # of so many slots, or of one table, at most: a byte each, as long as a look takes

_NONE = np.uint16(abi.SLOT_NONE)
_UNSTABLE = np.uint16(abi.SLOT_UNSTABLE)


@dataclass(frozen=True, slots=True)
class Tables:
    """The words of struct service: the table, and what it was before (0: nothing)."""

    current: int = 0
    previous: int = 0


NO_TABLES = Tables()

_Key = tuple[Members, int, Tables, bool, bool]  # what a table is made of: the arguments of `acquire`


@dataclass(slots=True)
class _Settling:
    """`due`: when the unstable slots of a table may be looked at again. `closed`: by slot, 1 where nothing is
    sent to the previous backend any more as far as we know. `not_before`: by slot, where one was disturbed.
    """

    previous: int
    due: float
    closed: NDArray[np.uint8] | None = None
    not_before: NDArray[np.float64] | None = None


_CLOSED = np.uint8(1)
_HIT = np.uint8(2)


class Look:
    """What one reading of the flow table finds of the slots of some tables. Slots are numbered one table
    after the other: `start_of(table)` and the slot.
    """

    def __init__(self, tables: dict[int, _Settling]) -> None:
        self._tables = tables
        self._starts: dict[int, int] = {}
        slots = 0
        for word in tables:
            self._starts[word] = slots
            slots += size(word)
        self._marks = np.zeros(slots, dtype=np.uint8)
        for word, settling in tables.items():
            if settling.closed is not None:
                self.marks_of(word)[:] = settling.closed

    def start_of(self, word: int) -> int | None:
        """The number of a table's first slot; None where this isn't about that table."""
        return self._starts.get(word)

    def hit(self, marks: NDArray[np.int64]) -> None:
        """Slots, by number, with a live flow of another backend than they name."""
        self._marks[marks] |= _HIT

    def disturb(self, marks: NDArray[np.int64]) -> None:
        """Slots that may have got such a flow behind the reader's back: they are not closed either."""
        self._marks[marks] = _HIT

    def closed(self, marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether nothing has been sent to the slots' previous backends since before the look began."""
        closed: NDArray[np.bool_] = self._marks[marks] & _CLOSED != 0
        return closed

    def tables(self) -> dict[int, _Settling]:
        return self._tables

    def marks_of(self, word: int) -> NDArray[np.uint8]:
        start = self._starts[word]
        return self._marks[start : start + size(word)]


def lines_for(reals: int) -> int:
    """Lines of the arena that a table for that many reals takes."""
    return maglev.table_size(reals) // abi.SLOTS_PER_LINE


def first_slot(word: int) -> int:
    """Where in the arena a table begins, counted in slots."""
    return (word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE


def size(word: int) -> int:
    """Slots of a table."""
    return 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)


class TableArena:
    """Gives out tables by their members, counts their users, settles them and takes them back."""

    def __init__(self, slots: NDArray[np.uint16], quarantine_s: float, settle_s: float) -> None:
        self._slots = slots
        self._flat = slots.reshape(-1)
        self._settle_s = settle_s
        self._lines = RunAllocator(len(slots), "lines of Maglev slots")
        self._quarantine = Quarantine(quarantine_s)
        self._known: dict[_Key, Tables] = {}
        self._shared: defaultdict[int, set[_Key]] = defaultdict(set)  # by word: the keys that it is in
        self._users: Counter[int] = Counter()
        self._settling: dict[int, _Settling] = {}
        self._looking: Look | None = None  # the last one, which may be under way
        self._lines.reserve(0, 1)  # word 0 leads to an empty slot
        slots[0] = abi.SLOT_NONE

    def adopt(self, tables: Tables, now: float) -> None:
        """One more user of tables of an earlier run, which keeps them from being written over."""
        for word in (tables.current, tables.previous):
            if word and not self._users[word]:
                self._lines.reserve(*self._place(word))
            if word:
                self._users[word] += 1
        if tables.previous:
            self._settling[tables.current] = _Settling(tables.previous, now + self._settle_s)

    def acquire(
        self,
        members: Members,
        reals: int,
        before: Tables,
        now: float,
        *,
        remember: bool = True,
        unsure: bool = False,
    ) -> Tables:
        """Tables with these members, of the size for that many reals, for a service that had `before`.

        `remember`: the flow table may have lost flows, so that what unstable slots named before matters.
        `unsure`: whatever `before` says, any slot may have flows of any backend.
        """
        key = members, maglev.table_size(reals), before, remember, unsure
        tables = self._known.get(key)
        if tables is None:
            tables = self._known[key] = self._make(members, key[1], before, now, remember, unsure)
            for word in {tables.current, tables.previous, before.current, before.previous}:
                self._shared[word].add(key)
        elif tables.previous:
            self._settling[tables.current].due = now + self._settle_s
        for word in (tables.current, tables.previous):
            if word:
                self._users[word] += 1
        return tables

    def release(self, tables: Tables, now: float) -> None:
        """One user less of acquired or adopted tables."""
        for word in (tables.current, tables.previous):
            if not word:
                continue
            self._users[word] -= 1
            if not self._users[word]:
                del self._users[word]
                self._forget_sharing(word)
                self._settling.pop(word, None)
                self._quarantine.add(*self._place(word), now)

    def maintain(self, now: float) -> None:
        for start, length in self._quarantine.release(now):
            self._lines.give_back(start, length)

    def look(self, now: float) -> Look | None:
        """What the reading of the flow table that begins now is to look at; None: nothing is due."""
        due: dict[int, _Settling] = {}
        slots = 0
        for word, settling in self._settling.items():
            if settling.due <= now and (not due or slots + size(word) <= LOOK_SLOTS):
                due[word] = settling
                slots += size(word)
        for word in due:
            self._forget_sharing(word)
        self._looking = Look(due) if due else None
        return self._looking

    def conclude(self, look: Look, now: float) -> Iterator[None]:
        """Takes one of the two steps in every slot that the look, whose reading has ended, found calm. A
        table is done with at each item.
        """
        for word, settling in look.tables().items():
            if self._settling.get(word) is settling:  # not exchanged meanwhile
                self._conclude(word, settling, look.marks_of(word), now)
            yield

    def _conclude(self, word: int, settling: _Settling, marks: NDArray[np.uint8], now: float) -> None:
        current, past = self.view(word), self.view(settling.previous)
        unstable = (current & _UNSTABLE) != 0
        calm = unstable & (marks & _HIT == 0)
        if settling.not_before is not None:
            calm &= settling.not_before <= now
        closed = marks & _CLOSED != 0
        current[calm & closed] &= ~_UNSTABLE
        folds = past.reshape(-1, len(current))  # positions of the larger table that share a slot
        folds[:, calm] = _NONE
        settling.closed = (closed | calm).astype(np.uint8)
        settling.due = now + (SETTLE_STEP_S if calm.any() else SETTLE_RETRY_S)
        if not (unstable & ~(calm & closed)).any():
            del self._settling[word]

    def disturb(self, tables: Tables, places: NDArray[np.int64], now: float) -> Tables:
        """Makes slots unstable: the flow table has got flows of other backends in them, from outside.
        `places`: their numbers in a table of any size. Returns what all users of the tables have from now on.

        A stable slot has led unrecorded flows to the backend that it names, and must remember that for as
        long as one that changes.
        """
        word = tables.current
        if not word:
            return tables
        self._forget_sharing(word)
        if not tables.previous:
            tables = Tables(word, self._write(np.full(size(word), _NONE, dtype=np.uint16)))
            self._users[tables.previous] = self._users[word]
        settling = self._settling.get(word)
        if settling is None:
            settling = self._settling[word] = _Settling(tables.previous, now + self._settle_s)
        slots = np.unique(places & size(word) - 1)
        current = self.view(word)
        stable = slots[current[slots] & _UNSTABLE == 0]
        self.view(tables.previous).reshape(-1, len(current))[:, stable] = current[stable]
        if settling.not_before is None:
            settling.not_before = np.zeros(len(current))
        settling.not_before[stable] = now + self._settle_s
        if settling.closed is not None:
            settling.closed[slots] = 0
        start = self._looking.start_of(word) if self._looking is not None else None
        if self._looking is not None and start is not None:
            self._looking.disturb(start + slots)
        current[slots] |= _UNSTABLE
        return tables

    def _forget_sharing(self, word: int) -> None:
        """Whoever comes from now on gets tables of its own: this one is not what it was."""
        for key in self._shared.pop(word, ()):
            tables = self._known.pop(key)
            for other in {tables.current, tables.previous, key[2].current, key[2].previous} - {word}:
                self._shared[other].discard(key)

    def view(self, word: int) -> Slots:
        """The slots of a table, in place."""
        return self._flat[first_slot(word) : first_slot(word) + size(word)]

    def _place(self, word: int) -> tuple[int, int]:
        """First line and number of lines of a table."""
        return word & 0xFFFFFFFF, max(1, size(word) // abi.SLOTS_PER_LINE)

    def _make(
        self, members: Members, slots: int, before: Tables, now: float, remember: bool, unsure: bool
    ) -> Tables:
        picks = maglev.build([m[1] for m in members], [m[2] for m in members], slots)
        locals_ = np.array([m[0] for m in members] + [abi.SLOT_NONE], dtype=np.uint16)
        current = locals_[picks]  # -1 picks the last: SLOT_NONE
        if unsure:
            before = NO_TABLES
        old, waiting, past = self._before(before, slots, remember)
        changed = (old != _NONE) & (old != np.tile(current, len(old) // slots))
        unstable = (changed | waiting | unsure).reshape(-1, slots).any(axis=0)
        if not unstable.any():
            return Tables(self._write(current))
        past[~np.tile(unstable, len(past) // slots)] = _NONE
        previous = self._write(past)
        tables = Tables(self._write(np.where(unstable, current | _UNSTABLE, current)), previous)
        self._settling[tables.current] = _Settling(previous, now + self._settle_s)
        return tables

    def _before(self, before: Tables, slots: int, remember: bool) -> tuple[Slots, NDArray[np.bool_], Slots]:
        """What the tables so far name, which of that is unstable, and where they send packets that start
        nothing and that the flow table doesn't know; all of one length, `slots` or a multiple of it.
        """
        if not before.current:
            nothing = np.full(slots, _NONE, dtype=np.uint16)
            return nothing, np.zeros(slots, dtype=bool), nothing.copy()
        length = max(slots, size(before.current), size(before.previous) if before.previous else 0)
        current = np.tile(self.view(before.current), length // size(before.current))
        waiting = (current & _UNSTABLE) != 0
        named = past = current & ~_UNSTABLE
        if before.previous:
            past = np.tile(self.view(before.previous), length // size(before.previous))
            past = np.where(waiting & ((past != _NONE) | (not remember)), past, named)
        return named, waiting, past.astype(np.uint16)

    def _take(self, lines: int) -> int:
        while True:
            try:
                return self._lines.take(lines)
            except DataplaneError:
                early = self._quarantine.release_early()
                if early is None:
                    raise
                self._lines.give_back(*early)

    def _write(self, slots: Slots) -> int:
        """Puts a table into the arena; returns its word."""
        lines = slots.reshape(-1, abi.SLOTS_PER_LINE)
        line = self._take(len(lines))
        self._slots[line : line + len(lines)] = lines
        return line | (len(slots).bit_length() - 1) << abi.TABLE_LOG2_SHIFT
