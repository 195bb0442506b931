"""Who is probed next when more probes are due than may be in flight: a fair queue.

Must not know: clocks, asyncio, what is queued. Two kinds of fairness:

* Groups (virtual services) take turns, so that a service of thousands of backends keeps none of the others
  waiting for longer than one round.
* Slow items (the caller's guess, from the last probe) may hold at most half of the places in flight.
  Thousands of dead reals, each holding a place for its whole timeout, thus never hold up the live ones.
  While both kinds wait they take turns, so the dead aren't forgotten either.

Invariant: within one group and lane, first in, first out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """A queue of queues, one for each group, served in turns."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def push(self, group: Hashable, item: T) -> None:
        self._groups.setdefault(group, deque()).append(item)

    def pop(self) -> T:
        """The first of the group whose turn it is. Raises `KeyError` when empty."""
        group, items = self._groups.popitem(last=False)
        item = items.popleft()
        if items:
            self._groups[group] = items
        return item


class FairQueue(Generic[T]):
    """Admits at most `limit` items at once, at most half of them (and at least one) slow."""

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise ValueError("a fair queue needs a place for each lane")
        self._limit = limit
        self._waiting: dict[bool, RoundRobin[T]] = {False: RoundRobin(), True: RoundRobin()}
        self._held = {False: 0, True: 0}
        self._slow_turn = False

    @property
    def in_flight(self) -> int:
        return sum(self._held.values())

    def push(self, group: Hashable, item: T, slow: bool) -> None:
        self._waiting[slow].push(group, item)

    def pop(self) -> tuple[T, bool] | None:
        """The next item and its lane (slow or not), to be given back by `release`; None if none may go."""
        slow = self._next_lane()
        if slow is None:
            return None
        self._slow_turn = not slow
        self._held[slow] += 1
        return self._waiting[slow].pop(), slow

    def release(self, slow: bool) -> None:
        """An item of that lane has left flight."""
        self._held[slow] -= 1

    def _next_lane(self) -> bool | None:
        if self.in_flight >= self._limit:
            return None
        may_go = {
            False: bool(self._waiting[False]),
            True: bool(self._waiting[True]) and self._held[True] < self._limit // 2,
        }
        for slow in (self._slow_turn, not self._slow_turn):
            if may_go[slow]:
                return slow
        return None
