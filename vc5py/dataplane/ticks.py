"""The data plane's clock: ticks of about a second, cut from jiffies so that reading it costs nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from vc5py.dataplane import abi, compiler, libbpf
from vc5py.errors import DataplaneError

# CONFIG_HZ -> how many bits of jiffies make a tick; the choices of kernel/Kconfig.hz.
_SHIFTS = {100: 7, 250: 8, 300: 8, 1000: 10}


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


def hz_from(jiffies: int, uptime_s: float) -> int:
    """CONFIG_HZ from one reading: the kernel starts jiffies 300 seconds before they wrap at 32 bits."""
    errors = {hz: abs((jiffies - (1 << 32)) / hz + 300 - uptime_s) for hz in _SHIFTS}
    best = min(errors, key=errors.__getitem__)  # around 300 s of uptime all are near
    if errors[best] < 2 + uptime_s * 0.01:
        return best
    raise DataplaneError(f"can't tell the kernel's HZ from jiffies {jiffies} at {uptime_s:.0f} s")


def measure() -> TickClock:
    """Asks the kernel."""
    module = compiler.compile_file(abi.XDP_DIR / "jiffies.c", {})
    fd = module.load("vc5_jiffies", compiler.ProgramType.XDP)
    try:
        data = libbpf.test_run(fd, bytes(64)).data
    finally:
        os.close(fd)
    uptime_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    jiffies = int.from_bytes(data[:8], "little")
    hz = hz_from(jiffies, uptime_s)
    return TickClock(hz, uptime_s - jiffies / hz)
