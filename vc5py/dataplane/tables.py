"""The Maglev tables in the slot arena, and what their slots named before they changed.

A slot is *stable* while every live flow in it belongs to the backend that it names; the data plane then
doesn't look into the flow table. Whoever changes a table writes a new one beside it with every changed slot
unstable, and a second one that says what the stable ones among those named before: packets went there without
being recorded, so that is where they still go where the flow table doesn't know them, unless they start a
connection. What has been sent through an unstable slot is recorded, so that for a slot that changes again
nothing more is remembered, except while the flow table may have had no room. What it doesn't know is then no
connection of ours but one that has moved here from another balancer, whose table is like our present one.
A slot that has been unstable for the settling time is *closed*, whatever flows it has and whatever else has
changed since: nothing more is sent to the previous backend. Who talks is recorded by then, and a new flow
that doesn't say that it is one (UDP) goes where the slot leads. A closed slot is stable again after two
*looks*, each one whole reading of the flow table (`sweep`), that find no live flow of another backend in it.
The second one empties the entries of other backends' dead flows.

Why two looks, however long each takes: into a closed slot no entry of another backend comes any more, what is
there is either seen alive by the second look, wherever that is in the table just then, or emptied by it.

A new table is written beside the old one. Where there is no room for that, the old one becomes the new one in
its place, slot by slot: what a slot named before is there before it is unstable, so each is right at any
moment. What that needs is kept in reserve from the start, the *spare* lines for a table's past. Each service
is promised lines for a table and its past, though it may share a table or have none just now; who comes or
grows beyond what can be promised is refused, so that a later change of health is not. Spares of others are
taken by such changes only, where tables that were shared part, and come back later.

Invariant: tables that packets may still use are not written, but for this and the two steps of settling;
freed lines are used again only after a quarantine (cut short for what finds no other room: a packet needs
microseconds from its service to its slot). A table's size follows the number of a service's
reals, whether they are up or not: one of another size moves nearly all flows that aren't recorded. Services
with the same reals and the same past share tables, as long as none of these has been looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.dataplane.looks import CALM, HIT, Look, Seconds, Settling, one_second
from vc5py.errors import DataplaneError

# (local index, identity of the real, weight) of every backend that takes new flows.
Members = tuple[tuple[int, int, int], ...]
Slots = NDArray[np.uint16]

# Between two looks: a packet needs microseconds. And until the next one where all that is left are live
# flows, which may last for long: a look reads the whole flow table.
SETTLE_STEP_S = 1.0
SETTLE_RETRY_S = 10.0

LOOK_SLOTS = 1 << 24  # of so many slots, or of one table, at most: a byte each, as long as a look takes
CLOSE_SLOTS = 1 << 21  # are closed at a time, or those of one table: some ten milliseconds

_NONE = np.uint16(abi.SLOT_NONE)
_UNSTABLE = np.uint16(abi.SLOT_UNSTABLE)


@dataclass(frozen=True, slots=True)
class Tables:
    """The words of struct service: the table, and what it was before (0: nothing)."""

    current: int = 0
    previous: int = 0


NO_TABLES = Tables()

_Key = tuple[Members, int, Tables, bool, bool]  # what a table is made of: the arguments of `acquire`


class _Reach(IntEnum):
    """Which lines a table may take: free ones; resting ones too; other tables' spares too."""

    FREE = 0
    RESTING = 1
    SPARES = 2


def lines_for(reals: int) -> int:
    """Lines of the arena that a table for that many reals takes."""
    return maglev.table_size(reals) // abi.SLOTS_PER_LINE


def lines_of_arena(tables: Sequence[int]) -> int:
    """Lines of an arena for tables of so many lines each: twice each, for it and its past, and as much again
    for a reload, or a restart, to something else altogether; beside that one change.
    """
    return 1 + 4 * sum(tables) + 2 * max(tables, default=0)


def lines_promised(lines: int, before: Tables) -> int:
    """Lines that a service may need at any time whose tables take so many: its table's, and those of what
    the slots named before, which is as large as the larger of the two was.
    """
    return lines + max([lines, *(_lines_of(word) for word in (before.current, before.previous) if word)])


def first_slot(word: int) -> int:
    """Where in the arena a table begins, counted in slots."""
    return (word & 0xFFFFFFFF) * abi.SLOTS_PER_LINE


def size(word: int) -> int:
    """Slots of a table."""
    return 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)


def _lines_of(word: int) -> int:
    return max(1, size(word) // abi.SLOTS_PER_LINE)


class TableArena:
    """Gives out tables by their members, counts their users, settles them and takes them back."""

    def __init__(self, slots: NDArray[np.uint16], quarantine_s: float, settle_s: float) -> None:
        self._slots = slots
        self._flat = slots.reshape(-1)
        self._settle_s = settle_s
        self._lines = RunAllocator(len(slots), "lines of Maglev slots", first=1)
        self._quarantine = Quarantine(quarantine_s)
        self._known: dict[_Key, Tables] = {}
        self._shared: defaultdict[int, set[_Key]] = defaultdict(set)  # by word: the keys that it is in
        self._users: Counter[int] = Counter()
        self._spares: dict[int, int] = {}  # by table: where its past will be; no packet knows of it yet
        self._bare: set[int] = set()  # tables that have neither a past nor a spare
        self._coming: dict[int, Slots] = {}  # what tables become in their place
        self._settling: dict[int, Settling] = {}
        self._looking: Look | None = None  # the last one, which may be under way
        self._promised = 0  # lines, to all services
        self._lines.reserve(0, 1)  # word 0 leads to an empty slot
        slots[0] = abi.SLOT_NONE

    def promise(self, lines: int, before: int) -> None:
        """Keeps so many lines for a service that had the promise of `before`. DataplaneError where there
        aren't as many that are promised to nobody else.
        """
        more = lines - before
        if more > 0 and self._promised + more >= len(self._slots):
            raise DataplaneError(f"no room for {more} more lines of Maglev slots (of {len(self._slots)})")
        self._promised += more

    def adopt(self, tables: Tables, now: float) -> int:
        """One more user of tables of an earlier run, which keeps them from being written over. Returns how
        many lines its service has the promise of.
        """
        for word in (tables.current, tables.previous):
            if word and not self._users[word]:
                self._lines.reserve(*self._place(word))
            if word:
                self._users[word] += 1
        if tables.previous:
            due = now + self._settle_s
            self._settling[tables.current] = Settling(tables.previous, due, one_second(due))
        elif tables.current:
            self._bare.add(tables.current)
        lines = lines_promised(_lines_of(tables.current), tables) if tables.current else 0
        self._promised += lines
        return lines

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
        """Tables with these members, of the size for that many reals, for a service that had `before`. They
        are in force once the service's record names them and they are committed.

        `remember`: the flow table may have lost flows, so that what unstable slots named before matters.
        `unsure`: whatever `before` says, any slot may have flows of any backend.
        """
        key, due = (members, maglev.table_size(reals), before, remember, unsure), now + self._settle_s
        tables = self._known.get(key)
        if tables is not None and tables.previous and not self._settling[tables.current].join(due):
            self._forget_sharing(tables.current)
            tables = None
        if tables is None:
            tables = self._make(members, key[1], before, due, remember, unsure)
            if tables.current != before.current:
                self._known[key] = tables
                for word in {tables.current, tables.previous, before.current, before.previous}:
                    self._shared[word].add(key)
        for word in (tables.current, tables.previous):
            if word:
                self._users[word] += 1
        return tables

    def commit(self, tables: Tables) -> None:
        """The service's record names them: a table that changes in its place does so now."""
        coming = self._coming.pop(tables.current, None)
        if coming is not None:
            slots = self.view(tables.current)
            changed = np.flatnonzero(slots != coming)
            slots[changed] = coming[changed]

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
                self._leave_look(word)
                self._bare.discard(word)
                if word in self._spares:
                    self._lines.give_back(*self._place(self._spares.pop(word)))
                self._quarantine.add(*self._place(word), now)

    def maintain(self, now: float) -> None:
        """Closes slots whose time has come, and takes back lines that have rested."""
        self._close(now)
        for start, length in self._quarantine.release(now):
            self._lines.give_back(start, length)
        for word in sorted(self._bare):
            if not self._keep_spare(word):
                break

    def _close(self, now: float) -> None:
        """Those first that have waited for longest."""
        over = [(one.closing, word) for word, one in self._settling.items() if one.closing <= now]
        slots = 0
        for _, word in sorted(over):
            settling = self._settling[word]
            past = self.view(settling.previous)
            settling.close(past.reshape(-1, size(word)), now)  # positions of the larger table share a slot
            self._forget_sharing(word)
            slots += len(past)
            if slots >= CLOSE_SLOTS:
                break

    def look(self, now: float) -> Look | None:
        """What the reading of the flow table that begins now is to look at; None: nothing is due."""
        due: dict[int, Settling] = {}
        slots = 0
        for word, settling in sorted(self._settling.items(), key=lambda item: item[1].due):
            if settling.due <= now < settling.closing and (not due or slots + size(word) <= LOOK_SLOTS):
                due[word] = settling
                slots += size(word)
        self._looking = Look(due, {word: size(word) for word in due}, now) if due else None
        return self._looking

    def conclude(self, look: Look, now: float) -> Iterator[None]:
        """Opens the slots that this look, whose reading has ended, and the one before found calm. A table is
        done with at each item.
        """
        for word, settling in look.tables().items():
            if self._settling.get(word) is settling:  # not exchanged meanwhile
                self._conclude(word, settling, look, now)
            yield

    def _conclude(self, word: int, settling: Settling, look: Look, now: float) -> None:
        current, marks = self.view(word), look.marks_of(word)
        unstable = (current & _UNSTABLE) != 0
        calm = unstable & (marks & HIT == 0) & (settling.closes <= look.began)
        again = calm & (marks & CALM != 0)
        current[again] &= ~_UNSTABLE
        settling.calm = (calm & ~again).astype(np.uint8)
        settling.due = now + (SETTLE_STEP_S if calm.any() else SETTLE_RETRY_S)
        if not (unstable & ~again).any():
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
            tables = Tables(word, self._spare_of(word))
            self.view(tables.previous)[:] = _NONE
            self._users[tables.previous] = self._users[word]
        due = now + self._settle_s
        settling = self._settling.setdefault(word, Settling(tables.previous, due, one_second(due)))
        slots = np.unique(places & size(word) - 1)
        current = self.view(word)
        stable = slots[current[slots] & _UNSTABLE == 0]
        self.view(tables.previous).reshape(-1, len(current))[:, stable] = current[stable]
        settling.disturb(slots, stable, len(current), due)
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
        return word & 0xFFFFFFFF, _lines_of(word)

    def _make(
        self, members: Members, slots: int, before: Tables, due: float, remember: bool, unsure: bool
    ) -> Tables:
        current = _table(members, slots)
        if unsure:
            before = NO_TABLES
        old, waiting, past, kept = self._before(before, slots, remember)
        changed = (old != _NONE) & (old != np.tile(current, len(old) // slots))
        unstable = (changed | waiting | unsure).reshape(-1, slots).any(axis=0)
        past[~np.tile(unstable, len(past) // slots)] = _NONE
        current[unstable] |= _UNSTABLE
        closes = self._closes(before, kept, slots, due)
        tables = self._put(current, past if unstable.any() else None, before)
        if unstable.any():
            self._settling[tables.current] = Settling(tables.previous, due, closes)
        return tables

    def _closes(self, before: Tables, kept: NDArray[np.bool_], slots: int, due: float) -> Seconds:
        """When the slots of a new table are closed: at `due`; those that are `kept`, as they lead where they
        led before and have been recorded since, when they would have been anyway.
        """
        settling, new = self._settling.get(before.current), one_second(due)
        if settling is None or not kept.any():
            return new
        held = np.broadcast_to(settling.closes, size(before.current))
        held = np.tile(held, len(kept) // len(held))
        closes: Seconds = np.where(kept, held, new).reshape(-1, slots).max(axis=0)
        return closes

    def _put(self, current: Slots, past: Slots | None, before: Tables) -> Tables:
        """A table and what its slots named before (None: they need nothing of that) into the arena."""
        may_stay = self._may_stay(before, len(current))
        reach = _Reach.FREE if may_stay else self._reach(before, len(current))
        try:
            previous = self._write(past, reach) if past is not None else 0
            try:
                tables = Tables(self._write(current, reach), previous)
            except DataplaneError:
                if previous:
                    self._lines.give_back(*self._place(previous))
                raise
        except DataplaneError:
            if may_stay:
                return self._put_in_place(current, past, before)
            if past is None or not self._has_past_for(before, len(past)):
                raise
            return self._put_by_its_past(current, past, before)
        if not previous:
            self._keep_spare(tables.current)
        return tables

    def _may_stay(self, before: Tables, slots: int) -> bool:
        """Whether a table of that size may take the place of one that a service has for itself."""
        return self._alone(before) and size(before.current) == slots

    def _alone(self, before: Tables) -> bool:
        users = [self._users[word] for word in (before.current, before.previous) if word]
        return bool(before.current) and max(users) == 1

    def _has_past_for(self, before: Tables, slots: int) -> bool:
        """Whether a service has for itself the lines of a past of that size, as one has that gets smaller."""
        has = before.previous or self._spares.get(before.current, 0)
        return self._alone(before) and bool(has) and size(has) == slots

    def _reach(self, before: Tables, slots: int) -> _Reach:
        """A new table, or one of another size, leaves others what they need to change."""
        same = before.current and size(before.current) == slots
        return _Reach.SPARES if same else _Reach.RESTING

    def _put_in_place(self, current: Slots, past: Slots | None, before: Tables) -> Tables:
        """The slots themselves at `commit`: their past is in the service's record by then."""
        word = before.current
        tables = Tables(word, before.previous or self._spare_of(word))
        self._forget_sharing(word)
        self._leave_look(word)
        self._settling.pop(word, None)
        self.view(tables.previous)[:] = _NONE if past is None else past
        self._coming[word] = current
        return tables

    def _put_by_its_past(self, current: Slots, past: Slots, before: Tables) -> Tables:
        """A smaller table, where there is room for no more than that. Until it is in force the past is right
        for the larger one as well: it says the same of unstable slots, and nobody asks about others.
        """
        spare = self._spares.pop(before.current, 0)
        try:
            word = self._write(current, _Reach.SPARES)
        except DataplaneError:
            if spare:
                self._spares[before.current] = spare
            raise
        previous = before.previous or spare
        self.view(previous)[:] = past
        self._forget_sharing(before.current)
        self._leave_look(before.current)
        return Tables(word, previous)

    def _leave_look(self, word: int) -> None:
        if self._looking is not None:
            self._looking.leave(word)

    # Spares

    def _keep_spare(self, word: int) -> bool:
        """Keeps lines for a table's past, if any are free."""
        try:
            start = self._lines.take(self._place(word)[1])
        except DataplaneError:
            self._bare.add(word)
            return False
        self._bare.discard(word)
        self._spares[word] = _word(start, size(word))
        return True

    def _spare_of(self, word: int) -> int:
        """Takes the lines for a table's past, wherever they come from."""
        lines = self._place(word)[1]
        spare = self._spares.pop(word, 0) or _word(self._take(lines, _Reach.SPARES), size(word))
        self._bare.discard(word)
        return spare

    def _before(
        self, before: Tables, slots: int, remember: bool
    ) -> tuple[Slots, NDArray[np.bool_], Slots, NDArray[np.bool_]]:
        """What the tables so far name, which of that is unstable, where they are to send packets that start
        nothing and that the flow table doesn't know, and which of that they do already; all of one length,
        `slots` or a multiple of it.
        """
        if not before.current:
            nothing = np.full(slots, _NONE, dtype=np.uint16)
            return nothing, np.zeros(slots, dtype=bool), nothing.copy(), np.zeros(slots, dtype=bool)
        length = max(slots, size(before.current), size(before.previous) if before.previous else 0)
        current = np.tile(self.view(before.current), length // size(before.current))
        waiting = (current & _UNSTABLE) != 0
        named = past = current & ~_UNSTABLE
        kept = np.zeros(length, dtype=bool)
        if before.previous:
            past = np.tile(self.view(before.previous), length // size(before.previous))
            kept = waiting & ((past != _NONE) | (not remember))
            past = np.where(kept, past, named)
        return named, waiting, past.astype(np.uint16), kept

    def _take(self, lines: int, reach: _Reach) -> int:
        """A run of lines, wherever they may come from."""
        while True:
            try:
                return self._lines.take(lines)
            except DataplaneError:
                early = self._quarantine.release_early() if reach >= _Reach.RESTING else None
                if early is None:
                    if reach < _Reach.SPARES or not self._spares:
                        raise
                    word, spare = self._spares.popitem()
                    self._bare.add(word)
                    early = self._place(spare)
                self._lines.give_back(*early)

    def _write(self, slots: Slots, reach: _Reach) -> int:
        """Puts a table into the arena; returns its word."""
        lines = slots.reshape(-1, abi.SLOTS_PER_LINE)
        line = self._take(len(lines), reach)
        self._slots[line : line + len(lines)] = lines
        return _word(line, len(slots))


def _word(line: int, slots: int) -> int:
    return line | (slots.bit_length() - 1) << abi.TABLE_LOG2_SHIFT


def _table(members: Members, slots: int) -> Slots:
    """What each slot names. DataplaneError where a slot can't: while a service exchanges so many reals that
    the old and the new ones are more than it can have.
    """
    if max((member[0] for member in members), default=0) >= abi.SLOT_NONE:
        raise DataplaneError(f"no room for more than {abi.SLOT_NONE} reals of a service, old and new ones")
    picks = maglev.build([m[1] for m in members], [m[2] for m in members], slots)
    locals_ = np.array([m[0] for m in members] + [abi.SLOT_NONE], dtype=np.uint16)
    table: Slots = locals_[picks]  # -1 picks the last: SLOT_NONE
    return table
