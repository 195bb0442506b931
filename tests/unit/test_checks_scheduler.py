"""The scheduler on a clock that jumps: minutes of cadence, exact to the instant, in no time.

Probes here are stand-ins that take a stated time; the last test runs real ones against a real server.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checks_clock import (
    CHECK,
    FIRST_REAL,
    OK,
    REFUSED,
    TIMEOUT,
    World,
    backend,
    gaps,
    now_s,
    on_jumping_clock,
)
from vc5py.checks.result import ProbeResult, Reason
from vc5py.checks.scheduler import Scheduler, next_due_s
from vc5py.core.detection import fast_interval_s
from vc5py.model import BackendId, Check, CheckType, HttpRequest

# --- cadence ---


@on_jumping_clock
async def test_cadence_does_not_depend_on_how_long_a_probe_takes() -> None:
    durations = itertools.cycle([0.0, 0.9, 0.3])
    world = World(takes_s=lambda _: next(durations))
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(61)
    assert gaps(world.starts[1]) == [2.0] * 30


@on_jumping_clock
async def test_missed_beats_are_skipped_and_the_beat_is_kept() -> None:
    world = World(takes_s=lambda _: 5.0)  # two and a half intervals
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(60)
    assert set(gaps(world.starts[1])) == {6.0}
    assert world.most_in_flight == 1


@pytest.mark.parametrize(("interval_s", "within_s"), [(0.4, 0.4), (30.0, 1.0)])
@on_jumping_clock
async def test_first_probes_are_spread_over_an_interval_or_a_second(
    interval_s: float, within_s: float
) -> None:
    world = World()
    check = Check("web", CheckType.TCP, 80, interval_s=interval_s)
    world.set_targets(range(100), check)
    async with world.running():
        await asyncio.sleep(within_s)
        world.set_targets(range(200), check)
        await asyncio.sleep(within_s)
    for late, numbers in ((0.0, range(100)), (within_s, range(100, 200))):
        firsts = sorted(world.starts[number][0] - late for number in numbers)
        assert firsts[0] < 0.1 * within_s
        assert 0.9 * within_s < firsts[-1] < within_s
        assert len(set(firsts)) == 100


@given(st.floats(0, 1e6), st.floats(0.05, 1e4), st.floats(0, 1e5))
def test_the_next_beat_is_the_first_that_is_not_past(due_s: float, interval_s: float, late_s: float) -> None:
    now = due_s + late_s
    beat = next_due_s(due_s, interval_s, now)
    tolerance = 1e-6 + interval_s * 1e-6
    assert beat >= due_s + interval_s - tolerance
    assert beat >= now - tolerance
    assert beat < now + interval_s + tolerance
    assert abs((beat - due_s) / interval_s - round((beat - due_s) / interval_s)) < 1e-3


# --- targets come and go ---


@on_jumping_clock
async def test_setting_the_same_targets_again_changes_nothing() -> None:
    world = World(takes_s=lambda _: 0.5)
    world.set_targets([1])
    async with world.running():
        for step in range(100):
            await asyncio.sleep(0.3)
            world.set_targets([1] if step % 2 else [1, 2])
    assert set(gaps(world.starts[1])) == {2.0}
    assert world.scheduler.stats().targets == 1


@on_jumping_clock
async def test_many_targets_change_with_turns_for_others_in_between() -> None:
    world = World()
    world.set_targets(range(1500))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with world.running():
        await asyncio.sleep(3)
        before = dict(world.scheduler._targets)
        task = asyncio.create_task(others())
        await world.scheduler.shift_targets([(backend(number), CHECK) for number in range(1000, 3500)])
        task.cancel()
        after = dict(world.scheduler._targets)
        await asyncio.sleep(3)
    assert turns >= 5, "a piece is a thousand"
    assert after.keys() == {(backend(number), CHECK) for number in range(1000, 3500)}
    assert all(after[key] is kept for key, kept in before.items() if key in after)
    assert all(world.starts[number][-1] > 3 for number in (1000, 1499, 1500, 3499))
    assert world.starts[0][-1] <= 3


@on_jumping_clock
async def test_a_removed_target_is_probed_no_more() -> None:
    world = World()
    world.set_targets([1, 2])
    async with world.running():
        await asyncio.sleep(3)
        world.set_targets([2])
        before = len(world.starts[1])
        await asyncio.sleep(20)
    assert len(world.starts[1]) == before
    assert len(world.starts[2]) > before


@on_jumping_clock
async def test_a_result_of_a_target_removed_in_flight_is_dropped() -> None:
    world = World(takes_s=lambda _: 1.5)
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(1.0)
        assert world.in_flight == 1
        world.set_targets([])
        await asyncio.sleep(10)
    assert (world.reports, world.scheduler.stats().in_flight) == ([], 0)
    assert len(world.starts[1]) == 1


@on_jumping_clock
async def test_a_changed_check_is_a_new_target() -> None:
    world = World()
    world.set_targets([1])
    other = Check("web", CheckType.TCP, 81, interval_s=5.0)
    async with world.running():
        await asyncio.sleep(10)
        world.set_targets([1], other)
        world.reports.clear()
        await asyncio.sleep(30)
    assert [check for _, check, _ in world.reports] == [other] * 6
    assert world.scheduler.stats().probes[CheckType.TCP, Reason.OK] == 6


@on_jumping_clock
async def test_a_report_may_change_the_targets() -> None:
    world = World()
    world.on_report = lambda: world.set_targets([])
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(10)
    assert len(world.reports) == 1


@on_jumping_clock
async def test_endless_reloads_leave_no_litter() -> None:
    world = World()
    world.set_targets([])
    async with world.running():
        for step in range(300):
            world.set_targets(range(step, step + 10))
            await asyncio.sleep(0.001)
        assert len(world.scheduler._heap) <= 30


@on_jumping_clock
async def test_a_target_removed_while_it_waits_for_a_place_is_not_probed() -> None:
    world = World(takes_s=lambda _: 10.0, limit=2)
    world.set_targets(range(50))
    async with world.running():
        await asyncio.sleep(2.0)
        world.set_targets([49])
        started = set(world.starts)
        await asyncio.sleep(30)
    assert len(started) == 2
    assert set(world.starts) - started <= {49}


# --- hurry ---


@pytest.mark.parametrize(
    ("interval_s", "fast_s"), [(2.0, 0.5), (0.4, 0.1), (0.2, 0.1), (0.05, 0.05), (60.0, 15.0)]
)
def test_fast_is_a_quarter_but_bounded(interval_s: float, fast_s: float) -> None:
    assert fast_interval_s(interval_s) == pytest.approx(fast_s)


@on_jumping_clock
async def test_hurry_speeds_up_at_once_and_back() -> None:
    world = World()
    world.set_targets([1, 2])
    async with world.running():
        await asyncio.sleep(1.0)
        world.starts.clear()
        for _ in range(2):  # saying it twice changes nothing
            world.scheduler.hurry(backend(1), CHECK, fast=True)
        await asyncio.sleep(2.1)
        world.scheduler.hurry(backend(1), CHECK, fast=False)
        await asyncio.sleep(7.0)
    assert world.starts[1][0] <= 1.5
    assert gaps(world.starts[1]) in ([0.5] * 4 + [2.0] * 3, [0.5] * 3 + [2.0] * 3)
    assert set(gaps(world.starts[2])) == {2.0}


@on_jumping_clock
async def test_hurry_out_of_a_report_takes_effect_with_the_next_probe() -> None:
    world = World(takes_s=lambda _: 0.1, gives=lambda _: REFUSED)
    world.on_report = lambda: world.scheduler.hurry(backend(1), CHECK, fast=len(world.reports) < 3)
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(9)
    assert gaps(world.starts[1])[:4] == [0.5, 0.5, 2.0, 2.0]


@on_jumping_clock
async def test_hurry_never_postpones_and_ignores_the_unknown() -> None:
    world = World()
    world.set_targets([1])
    async with world.running():
        await asyncio.sleep(1.0)
        due = world.starts[1][0] + 2.0
        await asyncio.sleep(due - now_s() - 0.1)
        world.scheduler.hurry(backend(1), CHECK, fast=True)
        world.scheduler.hurry(backend(2), CHECK, fast=True)
        await asyncio.sleep(0.2)
    assert world.starts[1][1:] == [pytest.approx(due)]
    assert world.starts[2] == []


@on_jumping_clock
async def test_results_are_reported_in_the_order_in_which_their_probes_began() -> None:
    """The first one fails; the second is on its way when the third is refused, and succeeds after all."""
    check = Check("web", CheckType.TCP, 80, interval_s=1.0, timeout_s=1.0, fall=3)
    takes_s = itertools.chain([0.0, 1.0, 0.9, 0.0], itertools.repeat(0.0))
    gives = itertools.chain([OK, TIMEOUT, REFUSED, OK], itertools.repeat(OK))  # as they end
    world = World(takes_s=lambda _: next(takes_s), gives=lambda _: next(gives))
    world.on_report = lambda: world.scheduler.hurry(backend(1), check, fast=not world.reports[-1][2].ok)
    world.set_targets([1], check)
    async with world.running():
        await asyncio.sleep(10)
    assert world.results_of(1)[:5] == [OK, TIMEOUT, OK, REFUSED, OK]
    assert world.most_in_flight == 2
    begun = world.starts[1]
    assert gaps(begun)[:3] == [1.0, 1.0, 0.04]
    assert set(gaps(begun)[5:]) == {1.0}, "when all is well it has its cadence again"


@on_jumping_clock
async def test_a_follow_up_that_waits_for_a_place_is_not_planned_again() -> None:
    """Slow ones have one place here: the third waits for the second, which succeeds after all."""
    check = Check("web", CheckType.TCP, 80, interval_s=1.0, timeout_s=0.9, fall=3)
    takes_s = itertools.chain([0.9, 0.5, 0.9], itertools.repeat(0.0))
    gives = itertools.chain([TIMEOUT, OK, TIMEOUT], itertools.repeat(OK))
    world = World(takes_s=lambda _: next(takes_s), gives=lambda _: next(gives), limit=2)
    world.on_report = lambda: world.scheduler.hurry(backend(1), check, fast=not world.reports[-1][2].ok)
    world.set_targets([1], check)
    async with world.running():
        await asyncio.sleep(6)
    assert gaps(world.starts[1])[:4] == [1.0, 0.5, 1.0, 1.0]
    assert world.most_in_flight == 1


@on_jumping_clock
async def test_what_is_in_flight_counts_among_those_that_follow_a_failure() -> None:
    """All but the second are silent: of the five failures that it takes then, three had begun before."""
    check = Check("web", CheckType.TCP, 80, interval_s=1.0, timeout_s=2.0, fall=5)
    takes_s = itertools.chain([2.0, 0.5], itertools.repeat(2.0))
    gives = itertools.chain([TIMEOUT, OK], itertools.repeat(TIMEOUT))  # as they end
    world = World(takes_s=lambda _: next(takes_s), gives=lambda _: next(gives))
    world.on_report = lambda: world.scheduler.hurry(backend(1), check, fast=len(world.reports) < 7)
    world.set_targets([1], check)
    async with world.running():
        await asyncio.sleep(1.0)
        await asyncio.sleep(world.starts[1][0] + 6.0 - now_s())
    assert gaps(world.starts[1]) == [2.0, 0.02, 0.01, 0.01, 2.0, 0.02]


# --- limits and fairness ---


@on_jumping_clock
async def test_no_more_in_flight_than_the_limit_and_the_lag_shows_it() -> None:
    world = World(takes_s=lambda _: 0.4, limit=8)
    world.set_targets(range(100))
    async with world.running():
        await asyncio.sleep(30)
        assert world.scheduler.stats().in_flight == world.most_in_flight == 8
        assert world.scheduler.stats().lag_s > 1.0
    assert all(len(world.starts[number]) >= 3 for number in range(100))


@on_jumping_clock
async def test_the_dead_do_not_starve_the_living() -> None:
    dead, living = range(1000), range(1000, 1010)
    world = World(
        takes_s=lambda n: 1.0 if n in dead else 0.001,
        gives=lambda n: TIMEOUT if n in dead else OK,
        limit=64,
    )
    world.set_targets([*dead, *living])
    async with world.running():
        await asyncio.sleep(40)  # until it is known who is dead
        settled = {number: len(world.starts[number]) for number in living}
        await asyncio.sleep(60)
    assert all(len(world.starts[number]) - settled[number] >= 29 for number in living)
    assert all(len(world.starts[number]) >= 2 for number in dead)
    assert world.most_in_flight <= 64


@on_jumping_clock
async def test_a_large_service_that_dies_does_not_hold_up_a_small_one_even_at_first() -> None:
    world = World(takes_s=lambda n: 1.0 if n < 1000 else 0.001, limit=64)
    world.scheduler.set_targets(
        [(backend(n, "large"), CHECK) for n in range(1000)] + [(backend(1000, "small"), CHECK)]
    )
    async with world.running():
        await asyncio.sleep(10)
    assert len(world.starts[1000]) >= 3


@on_jumping_clock
async def test_thirty_thousand_waiting_targets_take_no_tasks() -> None:
    world = World()
    check = Check("web", CheckType.TCP, 80, interval_s=60.0)
    world.set_targets(range(30_000), check)
    async with world.running():
        await asyncio.sleep(1.5)
        assert len(asyncio.all_tasks()) == 2  # this test and the scheduler
        assert world.scheduler.stats().probes == {(CheckType.TCP, Reason.OK): 30_000}


# --- what goes wrong ---


@on_jumping_clock
async def test_a_backend_the_data_plane_does_not_have_fails_without_a_probe() -> None:
    world = World()
    world.missing = {1}
    world.set_targets([1, 2])
    async with world.running():
        await asyncio.sleep(5)
        assert {result.reason for result in world.results_of(1)} == {Reason.NO_BACKEND}
        assert not any(result.ok for result in world.results_of(1))
        world.missing = set()
        await asyncio.sleep(2)
    assert world.results_of(1)[-1] == OK
    assert len(world.starts[1]) == 1


@pytest.mark.parametrize("becomes", [None, 7])
@on_jumping_clock
async def test_a_result_whose_mark_went_stale_in_flight_counts_for_nothing(becomes: int | None) -> None:
    """The place in the data plane may be another backend's by then: what answered is anybody's guess."""
    world = World(takes_s=lambda _: 1.2, gives=lambda _: REFUSED)
    check = Check("web", CheckType.TCP, 80, interval_s=10.0)
    world.set_targets([1], check)
    async with world.running():
        await asyncio.sleep(1.0)
        assert world.in_flight == 1
        world.moved = {1: becomes}
        await asyncio.sleep(2.0)
        assert world.reports == []
        assert world.scheduler.stats().probes == {(CheckType.TCP, Reason.STALE): 1}
        world.moved = {}
        await asyncio.sleep(10.0)
    assert world.reports == [(1, check, REFUSED)]
    assert gaps(world.starts[1]) == [10.0]


@on_jumping_clock
async def test_a_crash_in_a_probe_is_logged_and_reported_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash(number: int) -> ProbeResult:
        return OK if number == 2 else [OK][number]

    world = World(gives=crash)
    world.set_targets([1, 2])
    with caplog.at_level(logging.ERROR):
        async with world.running():
            await asyncio.sleep(9)
    assert {result.reason for result in world.results_of(1)} == {Reason.INTERNAL}
    assert len(world.results_of(1)) >= 4
    assert {result.reason for result in world.results_of(2)} == {Reason.OK}
    assert "IndexError" in caplog.text
    assert "event=probe_crashed backend=web@192.0.2.1/10.0.0.1 check=web" in caplog.text


@on_jumping_clock
async def test_a_crash_in_the_report_is_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.on_report = lambda: [][0]
    world.set_targets([1])
    with caplog.at_level(logging.ERROR):
        async with world.running():
            await asyncio.sleep(9)
    assert len(world.reports) >= 4
    assert "event=report_crashed" in caplog.text


@on_jumping_clock
async def test_cancelling_ends_the_probes_too() -> None:
    world = World(takes_s=lambda _: 100.0)
    world.set_targets(range(20))
    async with world.running():
        await asyncio.sleep(5)
        assert world.in_flight == 20
    assert (world.in_flight, world.scheduler.stats().in_flight, world.reports) == (0, 0, [])
    assert len(asyncio.all_tasks()) == 1


@on_jumping_clock
async def test_stats_count_by_type_and_reason() -> None:
    world = World(gives=lambda number: OK if number else REFUSED)
    world.set_targets([0, 1])
    async with world.running():
        await asyncio.sleep(4.0)
        stats = world.scheduler.stats()
    assert stats.probes == {(CheckType.HTTP, Reason.OK): 2, (CheckType.HTTP, Reason.REFUSED): 2}
    assert (stats.targets, stats.in_flight) == (2, 0)
    assert stats.lag_s == stats.lag_p99_s == pytest.approx(0.0, abs=1e-6)


@on_jumping_clock
async def test_the_99th_percentile_of_lag_is_over_the_last_starts() -> None:
    world = World(takes_s=lambda _: 1.0, limit=2)
    assert world.scheduler.stats().lag_p99_s == 0.0
    world.set_targets(range(20), Check("web", CheckType.TCP, 80, interval_s=1000.0))
    async with world.running():
        await asyncio.sleep(15)
    stats = world.scheduler.stats()  # the last two waited for the nine pairs before them
    assert 8.0 < stats.lag_s <= stats.lag_p99_s < 9.0


# --- for real ---


async def test_real_probes_of_a_real_server() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.transport.abort()

    results: asyncio.Queue[ProbeResult] = asyncio.Queue()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    check = Check(
        "web",
        CheckType.HTTP,
        server.sockets[0].getsockname()[1],
        HttpRequest(expect=frozenset({204})),
        interval_s=0.02,
        timeout_s=5.0,
    )
    name = BackendId("web", IPv4Address("127.0.0.1"), FIRST_REAL)
    scheduler = Scheduler(
        lambda _: 0, lambda _name, _check, result: results.put_nowait(result), None, random.Random(1)
    )
    scheduler.set_targets([(name, check)])
    task = asyncio.create_task(scheduler.run(), name="scheduler")
    async with asyncio.timeout(10):
        assert [(await results.get()).detail for _ in range(5)] == ["status 204"] * 5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.close()
    await server.wait_closed()
