"""Is a backend up? Rise and fall over a row of probe results, or m good ones of the last n, as tables.

Must not know: checks, sockets, time; who probes, how often, and why a probe failed.

Invariants: by rise and fall, a DOWN backend comes up only by `rise` successes in a row, an UP one goes down
only by `fall` failures in a row, and a single result to the contrary puts it back where it was; `streak`
counts the results in a row that speak against the settled state, so it is 0 in DOWN and UP, and positive in
RISING and FALLING. By m of n, it is up exactly while at least m of the n bits of `window` (the last result is
the lowest bit) are set. Before n probes the window holds what the beginning stands for: failures if it was
down, so that m successes bring it up, and successes if it was adopted as up, so that it takes n - m + 1
failures to bring it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Quorum = tuple[int, int]
"""(m, n): up while at least m of the last n probes succeeded."""


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
    """`streak` is for rise and fall, `window` for m of n; the other one is 0."""

    state: HealthState
    streak: int = 0
    window: int = 0

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

# (enough of the window are good, probe succeeded) -> next. What goes against the whole is a beginning change,
# and over with the next result that agrees: who loses one probe of many is not probed faster for ever.
_BY_QUORUM: dict[tuple[bool, bool], HealthState] = {
    (False, False): HealthState.DOWN,
    (False, True): HealthState.RISING,
    (True, True): HealthState.UP,
    (True, False): HealthState.FALLING,
}

_SETTLED = {state: Health(state) for state in HealthState}


def initial(up: bool, quorum: Quorum | None = None) -> Health:
    """Where a backend begins: UP if the data plane was already sending to it (a restart), else DOWN."""
    state = HealthState.UP if up else HealthState.DOWN
    if quorum is None or not up:
        return _SETTLED[state]
    return Health(state, window=(1 << quorum[1]) - 1)


def adapted(health: Health, before: Quorum | None, after: Quorum | None) -> Health:
    """The health under a changed quorum: what is up stays up, what was counted begins anew."""
    return health if before == after else initial(health.is_up, after)


def step(health: Health, ok: bool, rise: int, fall: int, quorum: Quorum | None = None) -> Health:
    """The health after one more probe result. `rise` and `fall` (>= 1) may change between calls; a `quorum`
    (1 <= m <= n) counts instead of them, and may not (see `adapted`).
    """
    if quorum is not None:
        return _windowed(health, ok, *quorum)
    underway, settled = _TRANSITIONS[health.state, ok]
    if underway is settled:
        return _SETTLED[settled]
    streak = health.streak + 1
    return _SETTLED[settled] if streak >= (rise if ok else fall) else Health(underway, streak)


def _windowed(health: Health, ok: bool, m: int, n: int) -> Health:
    window = (health.window << 1 | ok) & ((1 << n) - 1)
    state = _BY_QUORUM[window.bit_count() >= m, ok]
    if window == health.window and state is health.state:
        return health
    return Health(state, window=window)
