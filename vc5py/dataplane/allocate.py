"""Hands out indices of maps, singly and in runs, and keeps freed ones back until nothing can refer to them.

Pure. Invariant: what is handed out is neither in use nor in quarantine.
"""

from __future__ import annotations

from itertools import takewhile

from vc5py.errors import DataplaneError


class RunAllocator:
    """Runs of consecutive indices of [0, capacity), the first that fits.

    `first`: runs are given out at multiples of their length from there on, and from the smallest gap that has
    one, so that runs of 2^n indices break up as few longer ones as can be.
    """

    def __init__(self, capacity: int, what: str, first: int | None = None) -> None:
        self.capacity = capacity
        self._what = what
        self._first = first
        self._free: list[tuple[int, int]] = [(0, capacity)]  # (start, length), ascending, never adjacent

    def take(self, length: int) -> int:
        """The start of a free run; raises DataplaneError where there is none."""
        for start, room in self._candidates():
            begin = self._begin(start, length)
            if begin + length <= start + room:
                self.reserve(begin, length)
                return begin
        raise DataplaneError(f"no room for {length} more {self._what} (of {self.capacity})")

    def _candidates(self) -> list[tuple[int, int]]:
        return self._free if self._first is None else sorted(self._free, key=lambda run: (run[1], run[0]))

    def _begin(self, start: int, length: int) -> int:
        """Where in a gap from `start` on a run may begin."""
        return start if self._first is None else start + (self._first - start) % length

    def reserve(self, start: int, length: int) -> bool:
        """Takes a given run; False (and nothing taken) where it isn't wholly free."""
        for i, (free, room) in enumerate(self._free):
            if free <= start and start + length <= free + room:
                rest = [(free, start - free), (start + length, free + room - start - length)]
                self._free[i : i + 1] = [run for run in rest if run[1]]
                return True
        return False

    def give_back(self, start: int, length: int) -> None:
        runs = sorted([*self._free, (start, length)])
        merged = [runs[0]]
        for begin, room in runs[1:]:
            last, size = merged[-1]
            if last + size == begin:
                merged[-1] = (last, size + room)
            else:
                merged.append((begin, room))
        self._free = merged

    @property
    def free(self) -> int:
        return sum(room for _, room in self._free)


class Quarantine:
    """Things freed, each with the time from which it may be used again."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._due: dict[tuple[int, int], float] = {}  # in the order in which their time comes

    def add(self, start: int, length: int, now: float) -> None:
        self._due.pop((start, length), None)
        self._due[start, length] = now + self._wait_s

    def cancel(self, start: int, length: int) -> None:
        """Forgets something that is in use again after all."""
        self._due.pop((start, length), None)

    def release_early(self) -> tuple[int, int] | None:
        """The (start, length) that has waited longest, before its time; None where nothing waits."""
        first = next(iter(self._due), None)
        if first is not None:
            del self._due[first]
        return first

    def release(self, now: float) -> list[tuple[int, int]]:
        """The (start, length) whose time has come."""
        out = list(takewhile(lambda place: self._due[place] <= now, self._due))
        for place in out:
            del self._due[place]
        return out
