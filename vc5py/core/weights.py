"""Slow start: the weights of backends that came up a short while ago, in whole numbers.

A share grows in `STEPS` steps from 1/STEPS to all of the weight. The steps of all backends of a service are
taken at the same moments, those of a grid of `slow_start_s / (STEPS - 1)`, so that however many come up, a
service's table changes at most once in each of them. What counts is one backend's step against that of the
others: where all came up together, as at the first start, or where nobody else serves, all have their weight.

Must not know: why a backend came up, who serves. Invariant: where all are equally far, the weights are
exactly the given ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

STEPS = 8


def ramp_step(since: float | None, slow_start_s: float, now: float) -> int:
    """How far a backend is that began to serve at `since` (None: long ago): 1 to STEPS."""
    if since is None or slow_start_s <= 0:
        return STEPS
    grid = slow_start_s / (STEPS - 1)
    return max(1, min(STEPS, 1 + math.floor(now / grid) - math.floor(since / grid)))


def next_step_at(slow_start_s: float, now: float) -> float:
    """When whoever isn't at its last step takes the next one."""
    grid = slow_start_s / (STEPS - 1)
    return (math.floor(now / grid) + 1) * grid


def scaled(weights: Sequence[int], steps: Sequence[int]) -> tuple[list[int], int]:
    """Weights in the proportion of weight times step: the backends that are furthest have their own weight,
    all of them times the least number (1 to STEPS) that makes whole numbers of all; and that number.
    """
    furthest = max(steps, default=STEPS)
    if all(step == furthest for step in steps):
        return list(weights), 1
    parts = [weight * step for weight, step in zip(weights, steps, strict=True)]
    times = math.lcm(*(furthest // math.gcd(furthest, part) for part in parts))
    return [part * times // furthest for part in parts], times
