"""The Maglev tables in the slot arena: services with the same reals and weights share one.

Invariant: a table that a service points at, or did a moment ago, is never written: a new one is written
beside it, and the old one's lines are used again only after a quarantine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vc5py.core import maglev
from vc5py.dataplane import abi
from vc5py.dataplane.allocate import Quarantine, RunAllocator

# (local index, identity of the real, weight) of every backend that takes new flows.
Members = tuple[tuple[int, int, int], ...]


def lines_for(reals: int) -> int:
    """Lines of the arena that a table for that many reals takes."""
    return maglev.table_size(reals) // abi.SLOTS_PER_LINE


@dataclass(slots=True)
class _Table:
    line: int
    slots: int
    users: int


class TableArena:
    """Gives out tables by their members, counts their users and takes them back."""

    def __init__(self, slots: NDArray[np.uint16], quarantine_s: float = 1.0) -> None:
        self._slots = slots
        self._lines = RunAllocator(len(slots), "lines of Maglev slots")
        self._quarantine = Quarantine(quarantine_s)
        self._tables: dict[Members, _Table] = {}
        self._lines.reserve(0, 1)  # word 0, "no table", leads to an empty slot
        slots[0] = abi.SLOT_NONE

    def reserve(self, word: int) -> None:
        """Keeps the table of an earlier run, which packets still use, from being written over."""
        line, slots = self._decode(word)
        if word:
            self._lines.reserve(line, slots // abi.SLOTS_PER_LINE)

    def retire(self, word: int, now: float) -> None:
        """Takes back a reserved table that no service points at any more."""
        line, slots = self._decode(word)
        self._quarantine.add(line, slots // abi.SLOTS_PER_LINE, now)

    def acquire(self, members: Members) -> int:
        """The word for struct service.table of a table with these members."""
        table = self._tables.get(members)
        if table is None:
            table = self._tables[members] = self._write(members)
        table.users += 1
        return table.line | (table.slots.bit_length() - 1) << abi.TABLE_LOG2_SHIFT

    def release(self, members: Members, now: float) -> None:
        table = self._tables[members]
        table.users -= 1
        if not table.users:
            del self._tables[members]
            self._quarantine.add(table.line, table.slots // abi.SLOTS_PER_LINE, now)

    def maintain(self, now: float) -> None:
        for start, length in self._quarantine.release(now):
            self._lines.give_back(start, length)

    @staticmethod
    def _decode(word: int) -> tuple[int, int]:
        return word & 0xFFFFFFFF, 1 << (word >> abi.TABLE_LOG2_SHIFT & 31)

    def _write(self, members: Members) -> _Table:
        size = maglev.table_size(len(members))
        picks = maglev.build([m[1] for m in members], [m[2] for m in members], size)
        locals_ = np.array([m[0] for m in members] + [abi.SLOT_NONE], dtype=np.uint16)
        line = self._lines.take(size // abi.SLOTS_PER_LINE)
        filled = locals_[picks].reshape(-1, abi.SLOTS_PER_LINE)  # -1 picks the last: SLOT_NONE
        self._slots[line : line + len(filled)] = filled
        return _Table(line, size, 0)
