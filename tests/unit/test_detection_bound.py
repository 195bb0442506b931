"""How long a dead real gets new connections: the scheduler and the director together, on a clock that jumps.

A real dies at every phase of the cycle of its probes, refusing or silent, while a probe is on its way too.
The machine is late by `LATE_S` with whatever it does.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from tests.unit.checks_clock import OK, REFUSED, SOURCE, TIMEOUT, JumpingLoop, gaps
from tests.unit.directing import backend, service, start, ups
from vc5py.checks.result import ProbeResult
from vc5py.checks.scheduler import Scheduler
from vc5py.core import detection, director
from vc5py.core.detection import LATENCY_S, failures, is_bounded, longest_s
from vc5py.model import BackendId, Check, CheckType, IPAddress

LATE_S = 0.003
PHASES = 16
SETTLED = 6
"""So many intervals after the beginning the first deaths are."""


class Death(StrEnum):
    REFUSED = "refused"
    SILENT = "silent"
    REFUSED_THEN_SILENT = "refused, then silent"
    """As of a machine that shuts down: its server ends first."""


def check(interval_s: float, timeout_s: float, fall: int, quorum: tuple[int, int] | None = None) -> Check:
    return Check("c", CheckType.TCP, 80, None, interval_s, timeout_s, 2, fall, quorum)


BOUNDED = [
    check(2, 1, 3),  # the defaults
    check(1, 1, 3),
    check(2, 2, 3),
    check(2, 1, 2),
    check(2, 1.5, 3),
    check(1, 0.9, 3),
    check(1, 1.5, 4),
    check(1, 2, 6),
    check(0.5, 0.5, 3),
    check(0.1, 0.1, 3),
    check(10, 30, 7),
    check(60, 60, 3),
    check(1, 1, 1, (3, 5)),
    check(2, 2, 9, (8, 10)),
]
UNBOUNDED = [
    check(2, 1, 1),
    check(2, 1.5, 2),
    check(2, 2, 2),
    check(0.5, 4, 2),
    check(1, 1.1, 3),
    check(0.2, 2, 4),
    check(2, 3, 3, (4, 5)),
]


def named(check: Check) -> str:
    return f"{check.interval_s:g}/{check.timeout_s:g}/{check.quorum or check.fall}"


@dataclass
class World:
    """One real, up from the beginning: the director hears what its probes come to and sets their pace.

    `answers(begun_s, now_s)`: whether what was asked at that moment is answered when the answer is ready,
    `refuses` likewise. `begun` are probes, `heard` the results in the order in which the director had them.
    """

    check: Check
    answers: Callable[[float, float], bool]
    refuses: Callable[[float], bool] = lambda _: False
    takes_s: float = 0.001
    mark: Callable[[], int] = lambda: 1
    begun: list[float] = field(default_factory=list)
    heard: list[bool] = field(default_factory=list)
    most_in_flight: int = 0
    down_s: float | None = None

    def run(self, until_s: float) -> None:
        """Until then, or until the real is down."""
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(self._run(until_s))

    async def _run(self, until_s: float) -> None:
        self._state = start(service(reals=1, checks=(self.check,)), up=True)
        self._down, self._in_flight = asyncio.Event(), 0
        self._scheduler = Scheduler(
            lambda _: self.mark(), self._report, SOURCE, random.Random(1), prober=self._probe
        )
        self._scheduler.set_targets(self._state.targets())
        task = asyncio.create_task(self._scheduler.run(), name="scheduler")
        try:
            async with asyncio.timeout(until_s):
                await self._down.wait()
        except TimeoutError:
            pass
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _probe(self, _vip: IPAddress, check: Check, _m: int, _s: IPAddress | None) -> ProbeResult:
        now_s = asyncio.get_running_loop().time
        await asyncio.sleep(LATE_S)
        begun_s = now_s()
        self.begun.append(begun_s)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            if self.refuses(begun_s):
                return REFUSED
            await asyncio.sleep(self.takes_s)
            if self.answers(begun_s, now_s()):
                return OK
            await asyncio.sleep(begun_s + check.timeout_s - now_s() + LATE_S)
            return TIMEOUT
        finally:
            self._in_flight -= 1

    def _report(self, name: BackendId, check: Check, result: ProbeResult) -> None:
        self.heard.append(result.ok)
        now = asyncio.get_running_loop().time()
        self._state, actions = director.step(
            self._state, director.Probed(name, check, result.ok, str(result.reason)), now
        )
        for action in actions:
            if isinstance(action, director.Pace):
                self._scheduler.hurry(action.backend, action.check, action.fast)
        if not ups(self._state)[backend(0)]:
            self.down_s = now
            self._down.set()


def found_s(check: Check, death: Death, died_s: float, takes_s: float) -> float:
    """How long after it died the real was taken out."""
    silent_s = {
        Death.REFUSED: math.inf,
        Death.SILENT: died_s,
        Death.REFUSED_THEN_SILENT: died_s + check.interval_s,
    }[death]
    world = World(
        check,
        answers=lambda _, now_s: now_s < died_s,
        refuses=lambda begun_s: died_s <= begun_s < silent_s,
        takes_s=takes_s,
    )
    world.run(died_s + 3 * longest_s(check) + 1)
    assert world.down_s is not None
    return world.down_s - died_s


def worst_s(check: Check, death: Death, takes_s: float = 0.001) -> float:
    """Of all phases; the first one is just after an answer."""
    phases = (number / PHASES for number in range(PHASES))
    return max(found_s(check, death, (SETTLED + phase) * check.interval_s, takes_s) for phase in phases)


@pytest.mark.parametrize("death", Death)
@pytest.mark.parametrize("check", BOUNDED, ids=named)
def test_a_dead_real_is_out_within_interval_times_fall_and_100_ms(check: Check, death: Death) -> None:
    bound_s = check.interval_s * failures(check) + LATENCY_S
    for takes_s in (0.001, 0.6 * check.timeout_s):  # one that answers at once, and a slow one
        assert worst_s(check, death, takes_s) <= bound_s


@pytest.mark.parametrize("check", UNBOUNDED, ids=named)
def test_where_that_can_not_be_a_silent_death_takes_no_longer_than_is_said(check: Check) -> None:
    assert not is_bounded(check)
    longest = longest_s(check)
    assert longest > check.interval_s * failures(check) + LATENCY_S
    slack_s = check.interval_s / PHASES + LATENCY_S
    assert longest - slack_s <= worst_s(check, Death.SILENT) <= longest + LATENCY_S
    for death in (Death.REFUSED, Death.REFUSED_THEN_SILENT):
        assert worst_s(check, death) <= longest + LATENCY_S
    assert worst_s(check, Death.REFUSED) <= check.interval_s * failures(check) + LATENCY_S


@pytest.mark.parametrize("check", BOUNDED + UNBOUNDED, ids=named)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_slow_real_that_answers_in_time_is_probed_no_more_often_and_stays(
    check: Check, share: float
) -> None:
    """Once an interval, and once in several where its answers take that long."""
    takes_s = share * check.timeout_s
    world = World(check, answers=lambda *_: True, takes_s=takes_s)
    world.run(20 * check.interval_s)
    beats = math.ceil((takes_s + LATE_S) / check.interval_s)
    assert set(gaps(world.begun)) == {round(beats * check.interval_s, 6)}
    assert (world.down_s, world.most_in_flight, set(world.heard)) == (None, 1, {True})


@pytest.mark.parametrize("check", [c for c in BOUNDED if failures(c) > 2], ids=named)
def test_one_lost_answer_does_not_take_a_slow_real_down(check: Check) -> None:
    """Those that follow it are answered, each just in time, whether or not they began before its end."""
    lost_s = SETTLED * check.interval_s
    world = World(
        check,
        answers=lambda begun_s, _: not lost_s < begun_s < lost_s + check.interval_s,
        takes_s=0.9 * check.timeout_s,
    )
    world.run(lost_s + 40 * check.interval_s)
    assert world.down_s is None
    assert 1 <= world.heard.count(False) < failures(check)
    assert world.heard[-1]


def test_where_probes_in_turn_suffice_they_take_turns() -> None:
    """The defaults: as many and as far apart as one after the other."""
    world = World(check(2, 1, 3), answers=lambda _, now_s: now_s < 20)
    world.run(60)
    assert world.most_in_flight == 1
    assert gaps([t for t in world.begun if t > 20]) == [1.5, 1.5]


def test_follow_ups_spread_over_the_time_there_is() -> None:
    world = World(check(1, 1.5, 5), answers=lambda _, now_s: now_s < 20)
    world.run(60)
    first_s, *later = [t for t in world.begun if t > 20]
    assert world.most_in_flight > 1
    assert later[0] >= first_s + 1.5, "the first that follows waits for the failure"
    assert later[-1] <= first_s + 4 * 1 - 1.5 + 2 * LATE_S
    assert all(gap >= 0.2 for gap in gaps(later))
    assert len(later) == 4


def test_probes_that_count_for_nothing_are_not_followed_by_a_storm() -> None:
    """From the first failure on marks change under way: none of the results is reported any more."""
    marks = itertools.count()
    world = World(
        check(2, 2, 3),
        answers=lambda _, now_s: now_s < 20,
        refuses=lambda begun_s: begun_s > 20,
        mark=lambda: next(marks) if False in world.heard else 1,
    )
    world.run(40)
    assert world.heard.count(False) == 1
    assert len([t for t in world.begun if t > 20]) <= 1 + 2 + 20 / 0.5


@pytest.mark.parametrize("check", BOUNDED + UNBOUNDED, ids=named)
def test_follow_ups_are_in_order_and_end_by_the_promise(check: Check) -> None:
    for known_s in (100.0, 100.0 + check.timeout_s / 2, 100.0 + check.timeout_s):
        moments = detection.follow_ups(check, 100.0, known_s)
        if not is_bounded(check):
            assert moments == ()
            continue
        assert len(moments) == failures(check) - 1
        assert all(sooner < later for sooner, later in itertools.pairwise((known_s, *moments)))
        promise_s = 100.0 + (failures(check) - 1) * check.interval_s
        assert moments[-1] + check.timeout_s <= promise_s + detection.SPREAD_S + 1e-6
