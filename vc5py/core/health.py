"""Is a backend up? Rise and fall over a row of probe results, as a table.

Must not know: checks, sockets, time; who probes, how often, and why a probe failed.

Invariants: a DOWN backend comes up only by `rise` successes in a row, an UP one goes down only by `fall`
failures in a row; a single result to the contrary puts it back where it was. `streak` counts the results in
a row that speak against the settled state, so it is 0 in DOWN and UP, and positive in RISING and FALLING.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HealthState(StrEnum):
    DOWN = "down"
    RISING = "rising"
    UP = "up"
    FALLING = "falling"

    @property
    def is_up(self) -> bool:
        """Gets traffic: a backend that has begun to fail keeps it until it has failed often enough."""
        return self in (HealthState.UP, HealthState.FALLING)

    @property
    def is_changing(self) -> bool:
        """Between two settled states: a time to probe faster."""
        return self in (HealthState.RISING, HealthState.FALLING)


@dataclass(frozen=True, slots=True)
class Health:
    state: HealthState
    streak: int = 0

    @property
    def is_up(self) -> bool:
        return self.state.is_up


# (state, probe succeeded) -> (next while the streak is short, next when it is complete). The streak counts
# towards `rise` if the probe succeeded and towards `fall` if not; where both are the same, nothing counts.
_TRANSITIONS: dict[tuple[HealthState, bool], tuple[HealthState, HealthState]] = {
    (HealthState.DOWN, True): (HealthState.RISING, HealthState.UP),
    (HealthState.DOWN, False): (HealthState.DOWN, HealthState.DOWN),
    (HealthState.RISING, True): (HealthState.RISING, HealthState.UP),
    (HealthState.RISING, False): (HealthState.DOWN, HealthState.DOWN),
    (HealthState.UP, True): (HealthState.UP, HealthState.UP),
    (HealthState.UP, False): (HealthState.FALLING, HealthState.DOWN),
    (HealthState.FALLING, True): (HealthState.UP, HealthState.UP),
    (HealthState.FALLING, False): (HealthState.FALLING, HealthState.DOWN),
}


def initial(up: bool) -> Health:
    """Where a backend begins: UP if the data plane was already sending to it (a restart), else DOWN."""
    return Health(HealthState.UP if up else HealthState.DOWN)


def step(health: Health, ok: bool, rise: int, fall: int) -> Health:
    """The health after one more probe result. `rise` and `fall` (>= 1) may change between calls."""
    underway, settled = _TRANSITIONS[health.state, ok]
    if underway is settled:
        return Health(settled)
    streak = health.streak + 1
    return Health(settled) if streak >= (rise if ok else fall) else Health(underway, streak)
