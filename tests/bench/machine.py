"""What the machine itself does to a measurement: load that is put on it, moments in which it stood still.

A virtual machine is stopped whenever its host pleases. A process that was late is to blame only where one
of a higher priority, that has nothing else to do, was woken in time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bfd_ends import Lines

# Less than this is no stall, but what a timer and an interpreter take.
LEAST_MS = 2.0
_CANARY = f"""
import os, sys, time
os.sched_setaffinity(0, {{int(sys.argv[1])}})
if sys.argv[2] == "fifo":
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
while True:
    before = time.monotonic()
    time.sleep(0.005)
    now = time.monotonic()
    if now - before > 0.005 + {LEAST_MS} / 1e3:
        print(now, now - before - 0.005, flush=True)
"""


@contextlib.contextmanager
def load(hogs: int) -> Iterator[None]:
    """Processes that do nothing but compute, with normal priority."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(hogs)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@dataclass(frozen=True, slots=True)
class Stall:
    """A core on which nothing ran for so many seconds, until `at` of the monotonic clock."""

    at: float
    seconds: float

    def within(self, begin: float, end: float) -> float:
        """Seconds of it between these moments."""
        return max(0.0, min(self.at, end) - max(self.at - self.seconds, begin))


class Canary:
    """A process on every core that sleeps 5 ms at a time and tells when that took longer. Its priority is
    real-time and higher than BFD's, or normal. Used as a context.
    """

    def __init__(self, *, fifo: bool = True) -> None:
        priority = "fifo" if fifo else "normal"
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-S", "-c", _CANARY, str(core), priority], stdout=subprocess.PIPE, text=True
            )
            for core in sorted(os.sched_getaffinity(0))
        ]
        self._lines = [Lines(process.stdout) for process in self._processes if process.stdout is not None]

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process, lines in zip(self._processes, self._lines, strict=True):
            process.wait()
            lines.close()

    def longest_ms(self) -> float:
        """The longest of the stalls since the last call; 0 where there was none."""
        time.sleep(0.2)  # until they have said it
        return max((stall.seconds * 1e3 for stall in self.take()), default=0.0)

    def take(self) -> list[Stall]:
        """Since the last call."""
        said = [line.split() for lines in self._lines for line in lines.waiting()]
        return [Stall(float(at), float(seconds)) for at, seconds in said]


def steal_s() -> float:
    """What the host has given to others while this machine wanted to run, in seconds of one core, so far."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def usage(pids: list[int]) -> tuple[float, float]:
    """CPU seconds and resident megabytes."""
    cpu, rss = 0.0, 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        rss += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return cpu, rss / 1e6
