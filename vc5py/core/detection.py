"""How long a dead backend stays undiscovered: the arithmetic of interval, timeout and failures in a row.

Must not know: clocks, probes, who asks. Times are in seconds.

The first probe of a dead backend begins an interval after the death at the latest. One that refuses fails at
once, one that is silent after the timeout, and then as many more have to fail as it takes. Probed one after
the other, silent ones would take `failures` timeouts and more. So the latest moments are set at which each of
those that follow the first failure begins, whether or not the one before has ended. The promise is a verdict
`failures` intervals after the death. Silence is known only when the first timeout is over, and the last probe
takes another one: the promise can be kept while two timeouts are no more than the intervals between the first
probe and the verdict (`is_bounded`). Where it can't, nothing is gained by haste, and probes take turns.

Invariants: as many probes as before lead to a verdict; they stand as far apart as the promise allows; a
backend whose probes succeed is probed no more often than each interval.
"""

from __future__ import annotations

import math

from vc5py.model import Check

FASTEST_S = 0.1
HURRY_FACTOR = 4
SPREAD_S = 0.04
"""Where there is no time left for those that follow a failure, they begin within so much: not all at once."""

LATENCY_S = 0.1
"""What the machine may take on top: to begin probes late, to notice ends, to tell the data plane."""


def fast_interval_s(interval_s: float) -> float:
    """The interval while a state is changing: a quarter, at least 0.1 s, never longer than usual."""
    return min(interval_s, max(FASTEST_S, interval_s / HURRY_FACTOR))


def failures(check: Check) -> int:
    """In a row, that take down a backend of which all probes succeeded before."""
    return check.fall if check.quorum is None else check.quorum[1] - check.quorum[0] + 1


def is_bounded(check: Check) -> bool:
    """Whether a silent backend, too, is found within `failures` intervals."""
    return 2 * check.timeout_s <= (failures(check) - 1) * check.interval_s


def longest_s(check: Check) -> float:
    """From the death of a backend that was good until its verdict, at most, whatever kind of death it is;
    `LATENCY_S` may come on top."""
    count = failures(check)
    if is_bounded(check):
        return count * check.interval_s
    fast_s = fast_interval_s(check.interval_s)
    apart_s = (math.floor(check.timeout_s / fast_s) + 1) * fast_s
    return check.interval_s + (count - 1) * apart_s + check.timeout_s


def follow_ups(check: Check, begun_s: float, known_s: float) -> tuple[float, ...]:
    """The latest moments for those to begin that follow a first failure. Its probe began at `begun_s`, and
    that it failed was known at `known_s`. None where nothing is promised."""
    count = failures(check) - 1
    if not is_bounded(check):
        return ()
    last_s = begun_s + count * check.interval_s - check.timeout_s
    step_s = max(last_s - known_s, SPREAD_S) / count
    return tuple(known_s + number * step_s for number in range(1, count + 1))
