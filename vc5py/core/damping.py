"""How long a backend that flaps is kept out: RFC 2439's route flap damping, for reals.

Every time it goes down costs a point, and points halve every `half_life_s`. From `suppress` points on it is
kept out until they have fallen to `reuse`, but never longer than `longest_s` after it last went down.

Must not know: checks, services, who is needed all the same. Invariants: less than `suppress` times down never
keeps a backend out; `until` only grows while it is kept out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vc5py.model import Damping


@dataclass(frozen=True, slots=True)
class Points:
    """`value` points at the time `at`; kept out until `until` (seconds of the caller's clock)."""

    value: float = 0.0
    at: float = 0.0
    until: float = -math.inf


NONE = Points()


def value_at(points: Points, policy: Damping, now: float) -> float:
    """How many points are left."""
    return points.value * math.exp2((points.at - now) / policy.half_life_s)


def went_down(points: Points, policy: Damping | None, now: float) -> Points:
    """The points after going down once more."""
    if policy is None:
        return NONE
    value = value_at(points, policy, now) + 1.0
    if value < policy.suppress and points.until <= now:
        return Points(value, now)
    halvings = max(0.0, math.log2(value / policy.reuse))
    hold = halvings * policy.half_life_s
    if hold > policy.longest_s:  # as if it had fewer points: they are at `reuse` when the time is over
        hold = policy.longest_s
        value = policy.reuse * math.exp2(policy.longest_s / policy.half_life_s)
    return Points(value, now, max(points.until, now + hold))
