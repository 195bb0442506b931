"""When each backend is probed: a fixed cadence for each, kept by one timer for all.

Must not know: what a result leads to (it is handed to `report`), what a mark means to the data plane.

Invariants: a target whose probes succeed has at most one in flight; one that began to fail may have more,
lest a silent death take a timeout for each (`core.detection`); results are reported in the order in which
their probes began; waiting targets cost an entry in a heap and no task; a target that stays keeps its cadence
whatever happens to others; results of targets no longer wanted are dropped, and so are those of probes whose
mark means another backend by then; nothing that a probe does ends the scheduler.

The life of a target: heap (waits until it is due) -> fair queue (waits for a place) -> task -> heap. While it
fails it may be in the heap for the next probe already while a task has the one before.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from vc5py import checks
from vc5py.checks.queue import FairQueue
from vc5py.checks.result import ProbeResult, Reason
from vc5py.core.detection import fast_interval_s, follow_ups
from vc5py.model import BackendId, Check, CheckType, IPAddress

log = logging.getLogger(__name__)

MAX_SPLAY_S = 1.0
LAGS = 2048
PIECE = 1000
SLOW_SHARE = 0.5
"""A probe that takes more of its timeout than this is slow, and the target's next one queues accordingly."""

_Key = tuple[BackendId, Check]
Prober = Callable[[IPAddress, Check, int, IPAddress | None], Awaitable[ProbeResult]]


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """`probes` counts completed ones; `lag_s` is how much later than planned the last one began, `lag_p99_s`
    the 99th percentile of the last `LAGS` ones."""

    probes: Mapping[tuple[CheckType, Reason], int]
    targets: int
    in_flight: int
    lag_s: float
    lag_p99_s: float


@dataclass(slots=True, eq=False)
class _Flight:
    """A probe that began then; `result` is None until it has ended."""

    begun_s: float
    result: ProbeResult | None = None


@dataclass(slots=True, eq=False)
class _Target:
    """`due_s` is the time planned for the next probe, `beat_s` that of the last that began (the event loop's
    clock).

    `turn` is the number of its one valid heap entry, None while it isn't in the heap; `queued`: it waits for
    a place. `flights`: the probes not reported yet, in the order of their beginning. `failing`: the last one
    reported has failed; `deadlines`: until when those are to begin that follow the first such failure.
    `group` and `name` are made once: addresses are slow to print and to hash.
    """

    backend: BackendId
    check: Check
    group: str
    name: str
    due_s: float = 0.0
    fast: bool = False
    slow: bool = False
    wanted: bool = True
    turn: int | None = None
    queued: bool = False
    beat_s: float = 0.0
    flights: tuple[_Flight, ...] = ()
    failing: bool = False
    deadlines: tuple[float, ...] = ()

    @property
    def interval_s(self) -> float:
        return fast_interval_s(self.check.interval_s) if self.fast else self.check.interval_s

    def next_s(self, now_s: float) -> float | None:
        """When to probe next; None if the probe in flight has to end first."""
        deadline_s = self.deadlines[0] if self.fast and self.deadlines else None
        if self.flights:
            return deadline_s
        beat_s = next_due_s(self.beat_s, self.interval_s, now_s)
        return beat_s if deadline_s is None else min(beat_s, deadline_s)

    def judge(self, flight: _Flight, ok: bool, now_s: float) -> None:
        """Notes how a probe ended, those before it having been noted."""
        if ok:
            self.failing, self.deadlines = False, ()
        elif not self.failing:
            self.failing = True
            self.deadlines = follow_ups(self.check, flight.begun_s, now_s)[len(self.flights) :]


def _target(backend: BackendId, check: Check) -> _Target:
    return _Target(backend, check, str(backend.virtual_service), f"probe {backend} {check.name}")


def next_due_s(due_s: float, interval_s: float, now_s: float) -> float:
    """The next beat of the cadence that isn't past; beats missed are skipped, never made up for."""
    beats = max(1, math.ceil((now_s - due_s) / interval_s))
    return due_s + beats * interval_s


async def _in_turns(keys: Iterable[_Key]) -> AsyncIterator[_Key]:
    """All of them as they are now, with turns for others in between."""
    for position, key in enumerate(list(keys), 1):
        yield key
        if position % PIECE == 0:
            await asyncio.sleep(0)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


class Scheduler:
    """Probes every target at its interval, at most `limit` at once.

    `mark_of` names the mark that steers to a backend, None as long as the data plane doesn't have it;
    `report` gets every result. Both are called from the event loop and must not block.
    """

    def __init__(
        self,
        mark_of: Callable[[BackendId], int | None],
        report: Callable[[BackendId, Check, ProbeResult], None],
        source: IPAddress | None,
        rng: random.Random,
        *,
        limit: int = 512,
        prober: Prober = checks.probe,
    ) -> None:
        self._mark_of = mark_of
        self._report = report
        self._source = source
        self._rng = rng
        self._prober = prober
        self._targets: dict[tuple[BackendId, Check], _Target] = {}
        self._heap: list[tuple[float, int, _Target]] = []
        self._turns = itertools.count()
        self._queue: FairQueue[_Target] = FairQueue(limit)
        self._timer: asyncio.Handle | None = None
        self._timer_s = 0.0
        self._tasks: asyncio.TaskGroup | None = None
        self._probes: Counter[tuple[CheckType, Reason]] = Counter()
        self._lags_s: deque[float] = deque(maxlen=LAGS)

    def set_targets(self, targets: Iterable[tuple[BackendId, Check]]) -> None:
        """Probes these from now on, and only these. Targets that stay are left as they are."""
        wanted = dict.fromkeys(targets)
        for key in self._targets.keys() - wanted.keys():
            self._drop(self._targets.pop(key))
        for key in wanted:
            self._add(key)
        self._drop_stale()
        self._arm()

    async def shift_targets(self, targets: Iterable[tuple[BackendId, Check]]) -> None:
        """As `set_targets`, with turns for others in between: for a hundred thousand of them."""
        rest = iter(targets)
        wanted: dict[tuple[BackendId, Check], None] = {}
        while piece := list(itertools.islice(rest, PIECE)):
            wanted.update(dict.fromkeys(piece))
            await asyncio.sleep(0)
        for key in [key async for key in _in_turns(self._targets) if key not in wanted]:
            self._drop(self._targets.pop(key))
        async for key in _in_turns(wanted):
            self._add(key)
            self._arm()
        self._drop_stale()
        self._arm()

    def hurry(self, backend: BackendId, check: Check, fast: bool) -> None:
        """Probes the target at `fast_interval_s` until told otherwise; nothing for an unknown target."""
        target = self._targets.get((backend, check))
        if target is None or target.fast is fast:
            return
        target.fast = fast
        if target.flights or target.turn is None:  # in flight or about to be; planned anew afterwards
            return
        sooner_s = _now_s() + target.interval_s
        if sooner_s < target.due_s:
            self._plan(target, sooner_s)
            self._arm()

    def stats(self) -> SchedulerStats:
        lags = list(self._lags_s) or [0.0]
        last_s, p99_s = lags[-1], sorted(lags)[len(lags) * 99 // 100]
        return SchedulerStats(dict(self._probes), len(self._targets), self._queue.in_flight, last_s, p99_s)

    async def run(self) -> None:
        """Probes until cancelled. Run it once."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for target in self._targets.values():
                    self._splay(target)
                self._arm()
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None
                if self._timer is not None:
                    self._timer.cancel()

    def _add(self, key: tuple[BackendId, Check]) -> None:
        if key not in self._targets:
            target = self._targets[key] = _target(*key)
            if self._tasks is not None:
                self._splay(target)

    @staticmethod
    def _drop(target: _Target) -> None:
        target.wanted = False
        target.turn = None

    def _splay(self, target: _Target) -> None:
        """Spreads first probes, lest all of a restart's come at once."""
        splay_s = self._rng.random() * min(target.check.interval_s, MAX_SPLAY_S)
        self._plan(target, _now_s() + splay_s)

    def _plan(self, target: _Target, due_s: float) -> None:
        target.due_s = due_s
        target.turn = next(self._turns)
        heapq.heappush(self._heap, (due_s, target.turn, target))

    def _drop_stale(self) -> None:
        """Forgets heap entries of targets that went or moved, once they are the most of the heap."""
        if len(self._heap) > 2 * len(self._targets):
            self._heap = [entry for entry in self._heap if entry[2].turn == entry[1]]
            heapq.heapify(self._heap)

    def _arm(self) -> None:
        """Sets the one timer to the first due time."""
        if self._tasks is None or not self._heap:
            return
        due_s = self._heap[0][0]
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = asyncio.get_running_loop().call_at(due_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_s = _now_s()
        while self._heap and self._heap[0][0] <= now_s:
            _, turn, target = heapq.heappop(self._heap)
            if target.turn == turn:
                target.turn = None
                target.queued = True
                self._queue.push(target.group, target, target.slow)
        self._start()
        self._arm()

    def _start(self) -> None:
        """Starts as many of the queued probes as may go."""
        while self._tasks is not None and (admitted := self._queue.pop()) is not None:
            target, lane = admitted
            if not target.wanted:
                self._queue.release(lane)
                continue
            flight = self._begin(target)
            self._tasks.create_task(self._attend(target, flight, lane), name=target.name)

    def _begin(self, target: _Target) -> _Flight:
        flight = _Flight(_now_s())
        self._lags_s.append(max(0.0, flight.begun_s - target.due_s))
        target.queued, target.beat_s = False, target.due_s
        target.flights += (flight,)
        if target.deadlines:
            target.deadlines = target.deadlines[1:]
            self._replan(target)
        return flight

    def _replan(self, target: _Target) -> None:
        """Afresh, as a probe began or ended."""
        if target.queued:
            return
        due_s = target.next_s(_now_s())
        if due_s is None:
            target.turn = None
        elif target.turn is None or target.due_s != due_s:
            self._plan(target, due_s)

    async def _attend(self, target: _Target, flight: _Flight, lane: bool) -> None:
        """One probe and all that follows from it."""
        try:
            flight.result = await self._probe(target)
            self._report_in_order(target)
        finally:
            self._queue.release(lane)
            if target.wanted:
                self._replan(target)
            self._start()
            self._arm()

    def _report_in_order(self, target: _Target) -> None:
        """The results that no probe in flight, begun before theirs, keeps waiting."""
        while target.wanted and target.flights and (result := target.flights[0].result) is not None:
            flight, target.flights = target.flights[0], target.flights[1:]
            self._deliver(target, flight, result)

    async def _probe(self, target: _Target) -> ProbeResult:
        """Supervises a probe: a bug in one must not end the others."""
        try:
            mark = self._mark_of(target.backend)
            if mark is None:
                return ProbeResult(False, Reason.NO_BACKEND, "not in the data plane", 0.0)
            result = await self._prober(target.backend.vip, target.check, mark, self._source)
            if self._mark_of(target.backend) != mark:  # it may have gone to whoever has the mark now
                return ProbeResult(False, Reason.STALE, "moved in the data plane", result.duration_s)
            return result
        except Exception as error:
            log.exception("event=probe_crashed backend=%s check=%s", target.backend, target.check.name)
            return ProbeResult(False, Reason.INTERNAL, repr(error), 0.0)

    def _deliver(self, target: _Target, flight: _Flight, result: ProbeResult) -> None:
        """Supervises `report` likewise. It may call `hurry` and `set_targets`."""
        self._probes[target.check.type, result.reason] += 1
        if result.reason is Reason.STALE:
            return
        target.slow = result.duration_s > target.check.timeout_s * SLOW_SHARE
        target.judge(flight, result.ok, _now_s())
        try:
            self._report(target.backend, target.check, result)
        except Exception:
            log.exception("event=report_crashed backend=%s check=%s", target.backend, target.check.name)
