"""The data plane's clock, from what the kernel says."""

from __future__ import annotations

import time

import pytest

from vc5py.dataplane import ticks
from vc5py.dataplane.ticks import Reading, TickClock, hz_between, hz_from, measure
from vc5py.errors import DataplaneError

EVERY_HZ = [100, 250, 300, 1000]


def jiffies_at(hz: int, uptime_s: float) -> int:
    """INITIAL_JIFFIES (linux/jiffies.h) and what has passed since."""
    return (1 << 32) - 300 * hz + int(hz * uptime_s)


@pytest.mark.parametrize("hz", EVERY_HZ)
@pytest.mark.parametrize("uptime_s", [0.5, 20, 240, 360, 3600, 86400 * 400])
def test_hz_is_told_from_one_reading(hz: int, uptime_s: float) -> None:
    assert hz_from(Reading(jiffies_at(hz, uptime_s), uptime_s)) == hz


@pytest.mark.parametrize("late_s", [-1.5, 1.5])
def test_reading_may_be_a_little_late(late_s: float) -> None:
    assert hz_from(Reading(jiffies_at(250, 5000), 5000 + late_s)) == 250


@pytest.mark.parametrize("hz", EVERY_HZ)
@pytest.mark.parametrize("late_s", [-1.5, -0.3, -0.1, 0, 0.1, 0.3, 1.5])
def test_no_other_is_told_from_one_reading_around_the_wrap(hz: int, late_s: float) -> None:
    """Where all are near, the nearest is that which the reading's lateness makes it."""
    for tenths in range(2000, 4000):
        assert hz_from(Reading(jiffies_at(hz, tenths / 10), tenths / 10 + late_s)) in (None, hz)


@pytest.mark.parametrize("hz", EVERY_HZ)
@pytest.mark.parametrize("uptime_s", [299.9, 5000.003])
@pytest.mark.parametrize("late_s", [-0.005, 0, 0.005])
def test_hz_is_told_from_how_fast_jiffies_grow(hz: int, uptime_s: float, late_s: float) -> None:
    first, at_s = Reading(jiffies_at(hz, uptime_s), uptime_s), uptime_s + 0.25
    assert hz_between(first, Reading(jiffies_at(hz, at_s), at_s + late_s)) == hz


@pytest.mark.parametrize("hz", EVERY_HZ)
@pytest.mark.parametrize("first_late_s", [0, 0.05, 0.2, 5.0])
@pytest.mark.parametrize("second_late_s", [0, 0.05, 0.2, 5.0])
def test_who_is_kept_from_looking_guesses_nothing(hz: int, first_late_s: float, second_late_s: float) -> None:
    """Between the two clocks; around the wrap, where one reading says nothing."""
    for wait_s in ticks._WAITS_S:
        first = Reading(jiffies_at(hz, 300.0), 300.0 + first_late_s, first_late_s)
        begun_s = first.uptime_s + wait_s
        second = Reading(jiffies_at(hz, begun_s), begun_s + second_late_s, second_late_s)
        assert hz_between(first, second) in (None, hz)


@pytest.mark.parametrize("hz", EVERY_HZ)
def test_hz_is_told_within_a_few_seconds_at_every_moment(hz: int) -> None:
    """By both ways together, at every hundredth of a second around the wrap, somewhat late."""
    for hundredths in range(29000, 31000):
        uptime_s = hundredths / 100
        late = Reading(jiffies_at(hz, uptime_s - 0.003), uptime_s, 0.003)
        waits = (
            Reading(jiffies_at(hz, uptime_s + wait), uptime_s + wait + 0.003, 0.003)
            for wait in ticks._WAITS_S
        )
        found = next(filter(None, (hz_from(late), *(hz_between(late, second) for second in waits))), None)
        assert found == hz


@pytest.mark.parametrize("hz", [64, 200, 1024 + 128])
def test_another_clock_is_none(hz: int) -> None:
    first = Reading(jiffies_at(hz, 5000.0), 5000.0)
    assert hz_from(first) is None
    assert hz_between(first, Reading(jiffies_at(hz, 5001.0), 5001.0)) is None


def test_the_kernel_is_asked_again_where_one_reading_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = measure()
    monkeypatch.setattr(ticks, "hz_from", lambda _: None)
    by_rate = measure()
    assert by_rate.hz == at_once.hz
    assert by_rate.epoch_s == pytest.approx(at_once.epoch_s, abs=5.0)
    monkeypatch.setattr(ticks, "hz_between", lambda *_: None)
    monkeypatch.setattr(ticks, "_WAITS_S", (0.0, 0.0))
    with pytest.raises(DataplaneError, match="HZ"):
        measure()


@pytest.mark.parametrize("hz", EVERY_HZ)
def test_a_tick_is_about_a_second(hz: int) -> None:
    clock = TickClock(hz)
    assert 0.85 <= clock.tick_s <= 1.28
    assert clock.tick_s == 2**clock.shift / hz


def test_ticks_round_and_keep_within_half_of_16_bits() -> None:
    clock = TickClock(1000)
    assert [clock.ticks(s) for s in (0, 0.1, 1.024, 30, 1e9)] == [1, 1, 1, 29, 32767]
    assert TickClock(100).ticks(1.28 * 1000) == 1000


@pytest.mark.parametrize("hz", EVERY_HZ)
def test_now_is_that_of_the_kernels_jiffies(hz: int) -> None:
    """Jiffies were 0 at the epoch, whenever that was; 16 bits of ticks."""
    uptime_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    for passed_s in (0.0, 100.0, 86400.0 * 30):
        clock = TickClock(hz, uptime_s - passed_s)
        now = clock.now()
        late_s = time.clock_gettime(time.CLOCK_MONOTONIC) - uptime_s
        exact = passed_s / clock.tick_s
        assert (now - int(exact)) % 65536 <= 2 + late_s / clock.tick_s
        assert 0 <= now < 65536
