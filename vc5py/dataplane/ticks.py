"""The data plane's clock: ticks of about a second, cut from jiffies so that reading it costs nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from vc5py.dataplane import abi, compiler, libbpf
from vc5py.errors import DataplaneError

# CONFIG_HZ -> how many bits of jiffies make a tick; the choices of kernel/Kconfig.hz.
_SHIFTS = {100: 7, 250: 8, 300: 8, 1000: 10}
_RATE_ERROR = 0.08  # 250 and 300 can be told apart
_WAITS_S = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class TickClock:
    """`hz`: jiffies a second. `epoch_s`: when, on CLOCK_MONOTONIC, jiffies were 0."""

    hz: int
    epoch_s: float = 0.0

    def now(self) -> int:
        """The data plane's present tick, 16 bits."""
        jiffies = (time.clock_gettime(time.CLOCK_MONOTONIC) - self.epoch_s) * self.hz
        return int(jiffies) >> self.shift & 0xFFFF

    @property
    def shift(self) -> int:
        return _SHIFTS[self.hz]

    @property
    def tick_s(self) -> float:
        """Seconds a tick lasts: 0.85 to 1.28."""
        return (1 << self.shift) / self.hz

    def ticks(self, seconds: float) -> int:
        """At least 1, at most 32767: beyond that a wrapping 16-bit age can't be told from a young one."""
        return max(1, min(32767, round(seconds / self.tick_s)))


@dataclass(frozen=True, slots=True)
class Reading:
    """Jiffies, and CLOCK_MONOTONIC a moment later, at most `late_s` after."""

    jiffies: int
    uptime_s: float
    late_s: float = 0.0


def hz_from(reading: Reading) -> int | None:
    """CONFIG_HZ from one reading: the kernel starts jiffies 300 seconds before they wrap at 32 bits. None
    where it fits none, or more than one: around 300 s of uptime it is the same for all.
    """
    since_wrap, allowed_s = reading.jiffies - (1 << 32), 2 + reading.uptime_s * 0.01
    near = [hz for hz in _SHIFTS if abs(since_wrap / hz + 300 - reading.uptime_s) < allowed_s]
    return near[0] if len(near) == 1 else None


def hz_between(first: Reading, second: Reading) -> int | None:
    """CONFIG_HZ from how fast jiffies grow; None where that is like none, or like more than one, as we were
    kept from looking at both clocks at one moment.
    """
    grown, passed_s = second.jiffies - first.jiffies, second.uptime_s - first.uptime_s
    least_s, most_s = passed_s - second.late_s, passed_s + first.late_s
    slowest, fastest = 1 - _RATE_ERROR, 1 + _RATE_ERROR
    near = [hz for hz in _SHIFTS if hz * least_s * slowest < grown < hz * most_s * fastest]
    return near[0] if len(near) == 1 else None


def measure() -> TickClock:
    """Asks the kernel. Takes a quarter of a second where one reading isn't enough. Raises DataplaneError."""
    module = compiler.compile_file(abi.XDP_DIR / "jiffies.c", {})
    fd = module.load("vc5_jiffies", compiler.ProgramType.XDP)
    try:
        first = _read(fd)
        hz = hz_from(first)
        for wait_s in _WAITS_S:
            if hz is not None:
                break
            time.sleep(wait_s)
            hz = hz_between(first, _read(fd))
    finally:
        os.close(fd)
    if hz is None:
        raise DataplaneError(
            f"can't tell the kernel's HZ from jiffies {first.jiffies} at {first.uptime_s:.0f} s"
        )
    return TickClock(hz, first.uptime_s - first.jiffies / hz)


def _read(fd: int) -> Reading:
    before_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    data = libbpf.test_run(fd, bytes(64)).data
    after_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    return Reading(int.from_bytes(data[:8], "little"), after_s, after_s - before_s)
