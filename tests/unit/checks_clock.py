"""A world for the scheduler, on a clock that jumps: minutes of cadence, exact to the instant, in no time."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import selectors
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

from vc5py.checks.result import ProbeResult, Reason
from vc5py.checks.scheduler import Scheduler
from vc5py.model import BackendId, Check, CheckType, IPAddress

VIP = IPv4Address("192.0.2.1")
SOURCE = IPv4Address("192.0.2.200")
FIRST_REAL = IPv4Address("10.0.0.0")
CHECK = Check("web", CheckType.HTTP, 80, interval_s=2.0, timeout_s=1.0)
OK = ProbeResult(True, Reason.OK, "", 0.0)
REFUSED = ProbeResult(False, Reason.REFUSED, "", 0.0)
TIMEOUT = ProbeResult(False, Reason.TIMEOUT, "", CHECK.timeout_s)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while anything runs and jumps to the next timer when idle."""

    def __init__(self) -> None:
        super().__init__(_InstantSelector(self))
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class _InstantSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen again"
        self._loop.now_s += max(0.0, timeout)
        return super().select(0)


def on_jumping_clock(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now_s() -> float:
    return asyncio.get_running_loop().time()


def backend(number: int, service: str = "web") -> BackendId:
    return BackendId(service, VIP, FIRST_REAL + number)


def number_of(name: BackendId) -> int:
    return int(name.real) - int(FIRST_REAL)


class World:
    """All that a scheduler works with: backends named by number, which is their mark too."""

    def __init__(
        self,
        takes_s: Callable[[int], float] = lambda _: 0.0,
        gives: Callable[[int], ProbeResult] = lambda _: OK,
        limit: int = 512,
    ) -> None:
        self.takes_s = takes_s
        self.gives = gives
        self.starts: dict[int, list[float]] = defaultdict(list)
        self.reports: list[tuple[int, Check, ProbeResult]] = []
        self.on_report: Callable[[], None] = lambda: None
        self.missing: set[int] = set()
        self.moved: dict[int, int | None] = {}
        self.in_flight = self.most_in_flight = 0
        self.scheduler = Scheduler(
            self.mark_of, self.report, SOURCE, random.Random(1), limit=limit, prober=self.probe
        )

    def mark_of(self, name: BackendId) -> int | None:
        number = number_of(name)
        return None if number in self.missing else self.moved.get(number, number)

    async def probe(self, vip: IPAddress, check: Check, mark: int, source: IPAddress | None) -> ProbeResult:
        assert (vip, source) == (VIP, SOURCE)
        self.starts[mark].append(now_s())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.takes_s(mark))
            return self.gives(mark)
        finally:
            self.in_flight -= 1

    def report(self, name: BackendId, check: Check, result: ProbeResult) -> None:
        self.reports.append((number_of(name), check, result))
        self.on_report()

    def results_of(self, number: int) -> list[ProbeResult]:
        return [result for reported, _, result in self.reports if reported == number]

    def set_targets(self, numbers: Iterable[int], check: Check = CHECK) -> None:
        self.scheduler.set_targets((backend(number), check) for number in numbers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.scheduler.run(), name="scheduler")
        await asyncio.sleep(0)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def gaps(times: list[float]) -> list[float]:
    return [round(later - sooner, 6) for sooner, later in itertools.pairwise(times)]
