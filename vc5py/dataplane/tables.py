"""The Maglev tables in the slot arena: services with the same reals and weights share one.

Invariant: a table that a service points at, or did a moment ago, is never written: a new one is written
beside it, and the old one's lines are used again only after a quarantine (cut short where there is no other
room: a packet needs microseconds from its service to its slot). Size follows the number of a service's
reals, whether they are up or not: a table of another size moves nearly all flows that aren't recorded.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.allocate import Quarantine, RunAllocator
from vc5py.errors import DataplaneError

# (local index, identity of the real, weight) of every backend that takes new flows.
Members = tuple[tuple[int, int, int], ...]


def lines_for(reals: int) -> int:
    """Lines of the arena that a table for that many reals takes."""
    return maglev.table_size(reals) // abi.SLOTS_PER_LINE


class TableArena:
    """Gives out tables by their members, counts their users and takes them back.

    A table goes by its word, as it is in struct service.table; word 0 is no table.
    """

    def __init__(self, slots: NDArray[np.uint16], quarantine_s: float = 1.0) -> None:
        self._slots = slots
        self._lines = RunAllocator(len(slots), "lines of Maglev slots")
        self._quarantine = Quarantine(quarantine_s)
        self._words: dict[tuple[Members, int], int] = {}
        self._users: Counter[int] = Counter()
        self._lines.reserve(0, 1)  # word 0 leads to an empty slot
        slots[0] = abi.SLOT_NONE

    def adopt(self, word: int) -> None:
        """One more user of a table of an earlier run, which keeps it from being written over."""
        if word and not self._users[word]:
            self._lines.reserve(*self._place(word))
        if word:
            self._users[word] += 1

    def acquire(self, members: Members, reals: int) -> int:
        """The word of a table with these members, of the size for that many reals."""
        key = members, maglev.table_size(reals)
        word = self._words.get(key)
        if word is None:
            word = self._words[key] = self._write(*key)
        self._users[word] += 1
        return word

    def release(self, word: int, now: float) -> None:
        """One user less of an acquired or adopted table."""
        self._users[word] -= 1
        if not self._users[word]:
            del self._users[word]
            self._words = {key: other for key, other in self._words.items() if other != word}
            self._quarantine.add(*self._place(word), now)

    def maintain(self, now: float) -> None:
        for start, length in self._quarantine.release(now):
            self._lines.give_back(start, length)

    @staticmethod
    def _place(word: int) -> tuple[int, int]:
        """First line and number of lines of a table."""
        return word & 0xFFFFFFFF, (1 << (word >> abi.TABLE_LOG2_SHIFT & 31)) // abi.SLOTS_PER_LINE

    def _take(self, lines: int) -> int:
        while True:
            try:
                return self._lines.take(lines)
            except DataplaneError:
                early = self._quarantine.release_early()
                if early is None:
                    raise
                self._lines.give_back(*early)

    def _write(self, members: Members, size: int) -> int:
        picks = maglev.build([m[1] for m in members], [m[2] for m in members], size)
        locals_ = np.array([m[0] for m in members] + [abi.SLOT_NONE], dtype=np.uint16)
        line = self._take(size // abi.SLOTS_PER_LINE)
        filled = locals_[picks].reshape(-1, abi.SLOTS_PER_LINE)  # -1 picks the last: SLOT_NONE
        self._slots[line : line + len(filled)] = filled
        return line | (size.bit_length() - 1) << abi.TABLE_LOG2_SHIFT
