"""The data plane's clock, from what the kernel says."""

from __future__ import annotations

import time

import pytest

from vc5py.dataplane.ticks import TickClock, hz_from
from vc5py.errors import DataplaneError

EVERY_HZ = [100, 250, 300, 1000]


def jiffies_at(hz: int, uptime_s: float) -> int:
    """INITIAL_JIFFIES (linux/jiffies.h) and what has passed since."""
    return (1 << 32) - 300 * hz + int(hz * uptime_s)


@pytest.mark.parametrize("hz", EVERY_HZ)
@pytest.mark.parametrize("uptime_s", [0.5, 20, 290, 299, 301, 303, 310, 3600, 86400 * 400])
def test_hz_is_told_from_one_reading(hz: int, uptime_s: float) -> None:
    assert hz_from(jiffies_at(hz, uptime_s), uptime_s) == hz


@pytest.mark.parametrize("late_s", [-1.5, 1.5])
def test_reading_may_be_a_little_late(late_s: float) -> None:
    assert hz_from(jiffies_at(250, 5000), 5000 + late_s) == 250


@pytest.mark.parametrize(("hz", "uptime_s"), [(64, 5000.0), (1024, 86400.0), (250, 1.0)])
def test_another_clock_is_an_error(hz: int, uptime_s: float) -> None:
    with pytest.raises(DataplaneError, match="HZ"):
        hz_from(jiffies_at(hz, uptime_s) + (0 if hz != 250 else 10**6), uptime_s)


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
