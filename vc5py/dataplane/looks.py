"""What one reading of the flow table finds of the slots that are to settle: where other backends' flows live;
and when nothing more is to go to their previous backends.

Knows slots by number only; where tables are, and what a look leads to, is for the arena (`tables`) to know.
Invariant: a slot that may have got another backend's flow since the look began is never found calm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vc5py.dataplane import abi

Seconds = NDArray[np.int32]  # points in time; whole seconds, as there may be millions of slots

# A table is shared by those who come to it within so many seconds, though its slots get a full time to settle
# with each of them: who comes later would keep the first one's slots open for ever.
SHARE_S = 30.0

_NONE = np.uint16(abi.SLOT_NONE)


def second(at: float) -> int:
    """The first whole second that isn't before."""
    return math.ceil(at)


def one_second(at: float) -> Seconds:
    """The same for all slots."""
    return np.array([second(at)], dtype=np.int32)


@dataclass(slots=True)
class Settling:
    """`due`: when the unstable slots of a table may be looked at again. `closes`: by slot (or one number for
    all) when nothing more is sent to the previous backend; `closing`: the next time when that is so of some.
    `calm`: by slot, 1 where the last look found it closed and without a live flow of another backend.
    """

    previous: int
    due: float
    closes: Seconds
    calm: NDArray[np.uint8] | None = None
    closing: float = field(init=False)
    _latest: float = field(init=False)  # the `due` of the last one that this may be shared with

    def __post_init__(self) -> None:
        self.closing = float(self.closes.min())
        self._latest = self.due + SHARE_S

    def join(self, at: float) -> bool:
        """One more service shares the table, whose slots change only now: they are closed at that time. False
        where it comes too late.
        """
        if at > self._latest:
            return False
        self.closes[self.closes == self.closes.max()] = second(at)
        self.closing = float(self.closes.min())
        self.due = at
        return True

    def close(self, past: NDArray[np.uint16], now: float) -> None:
        """Closes the slots whose time has come. `past`: what they named before, shape (any, slots)."""
        past[:, np.broadcast_to(self.closes <= now, past.shape[1])] = _NONE
        later = self.closes[self.closes > now]
        self.closing = float(later.min()) if len(later) else math.inf

    def disturb(self, slots: NDArray[np.int64], stable: NDArray[np.int64], size: int, at: float) -> None:
        """Slots got flows of other backends from outside; those among them that were stable are closed at
        that time. `size`: of the table.
        """
        if len(self.closes) < size:
            self.closes = np.full(size, self.closes[0], dtype=np.int32)
        self.closes[stable] = second(at)
        self.closing = min(self.closing, float(second(at)))
        if self.calm is not None:
            self.calm[slots] = 0


CALM = np.uint8(1)
HIT = np.uint8(2)


class Look:
    """What one reading of the flow table finds of the slots of some tables. Slots are numbered one table
    after the other: `start_of(table)` and the slot. `sizes`: the tables' numbers of slots.
    """

    def __init__(self, tables: dict[int, Settling], sizes: dict[int, int], began: float) -> None:
        self.began = began
        self._tables = tables
        self._sizes = sizes
        self._starts: dict[int, int] = {}
        slots = 0
        for word in tables:
            self._starts[word] = slots
            slots += sizes[word]
        self._marks = np.zeros(slots, dtype=np.uint8)
        for word, settling in tables.items():
            if settling.calm is not None:
                self.marks_of(word)[:] = settling.calm

    def start_of(self, word: int) -> int | None:
        """The number of a table's first slot; None where this isn't about that table."""
        return self._starts.get(word)

    def hit(self, marks: NDArray[np.int64]) -> None:
        """Slots, by number, with a live flow of another backend than they name."""
        self._marks[marks] |= HIT

    def disturb(self, marks: NDArray[np.int64]) -> None:
        """Slots that may have got such a flow behind the reader's back, so that two more looks are needed."""
        self._marks[marks] = HIT

    def calm(self, marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the last look found them calm: nothing has gone to their previous backends since."""
        calm: NDArray[np.bool_] = self._marks[marks] & CALM != 0
        return calm

    def leave(self, word: int) -> None:
        """A table is not what it was: nothing that is found in its place is to have consequences."""
        if word in self._starts:
            self.marks_of(word)[:] = HIT

    def tables(self) -> dict[int, Settling]:
        return self._tables

    def marks_of(self, word: int) -> NDArray[np.uint8]:
        start = self._starts[word]
        return self._marks[start : start + self._sizes[word]]
