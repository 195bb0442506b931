"""What one reading of the flow table finds of the slots that are to settle: where other backends' flows live.

Knows slots by number only; where tables are, and what a look leads to, is for the arena (`tables`) to know.
Invariant: a slot that may have got another backend's flow since the look began is never found calm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Settling:
    """`due`: when the unstable slots of a table may be looked at again. `closed`: by slot, 1 where nothing is
    sent to the previous backend any more as far as we know. `not_before`: by slot, where one was disturbed.
    """

    previous: int
    due: float
    closed: NDArray[np.uint8] | None = None
    not_before: NDArray[np.float64] | None = None


CLOSED = np.uint8(1)
HIT = np.uint8(2)


class Look:
    """What one reading of the flow table finds of the slots of some tables. Slots are numbered one table
    after the other: `start_of(table)` and the slot. `sizes`: the tables' numbers of slots.
    """

    def __init__(self, tables: dict[int, Settling], sizes: dict[int, int]) -> None:
        self._tables = tables
        self._sizes = sizes
        self._starts: dict[int, int] = {}
        slots = 0
        for word in tables:
            self._starts[word] = slots
            slots += sizes[word]
        self._marks = np.zeros(slots, dtype=np.uint8)
        for word, settling in tables.items():
            if settling.closed is not None:
                self.marks_of(word)[:] = settling.closed

    def start_of(self, word: int) -> int | None:
        """The number of a table's first slot; None where this isn't about that table."""
        return self._starts.get(word)

    def hit(self, marks: NDArray[np.int64]) -> None:
        """Slots, by number, with a live flow of another backend than they name."""
        self._marks[marks] |= HIT

    def disturb(self, marks: NDArray[np.int64]) -> None:
        """Slots that may have got such a flow behind the reader's back: they are not closed either."""
        self._marks[marks] = HIT

    def closed(self, marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether nothing has been sent to the slots' previous backends since before the look began."""
        closed: NDArray[np.bool_] = self._marks[marks] & CLOSED != 0
        return closed

    def leave(self, word: int) -> None:
        """A table is not what it was: nothing that is found in its place is to have consequences."""
        if word in self._starts:
            self.marks_of(word)[:] = HIT

    def tables(self) -> dict[int, Settling]:
        return self._tables

    def marks_of(self, word: int) -> NDArray[np.uint8]:
        start = self._starts[word]
        return self._marks[start : start + self._sizes[word]]
