"""One real in one virtual service: everything known of it, apart from what is made of that.

Must not know: other backends, tables, routes. Invariants: `up` holds exactly while all of `healths` are up;
a value is never changed; what changes nothing gives the very same value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from vc5py.core import damping, health
from vc5py.core.damping import Points
from vc5py.core.health import Health, HealthState
from vc5py.model import AdminState, BackendId, Check, Damping, Real


class Phase(StrEnum):
    """What damping makes of a backend. Kept out: it takes no new flows however healthy. Used: it does all the
    same, because there are too few others.
    """

    FREE = "released"
    KEPT_OUT = "kept-out"
    USED = "used"


@dataclass(frozen=True, slots=True)
class Backend:
    """`admin` and `weight` are those that count, of the file or said at run time. `healths` go with `checks`.

    `since`: when it came up or went down, and `why`; `judged`: this process's probes have said so. What later
    failures of one that stays down say is not kept here. `joined`: when it began to take new flows after it
    could not for a while (None: before this process knew it), where its slow start begins.
    """

    id: BackendId
    real: Real
    sorry: bool
    checks: tuple[Check, ...]
    healths: tuple[Health, ...]
    up: bool
    admin: AdminState
    weight: int
    since: float
    why: str
    joined: float | None
    points: Points = damping.NONE
    phase: Phase = Phase.FREE
    phase_since: float | None = None
    judged: bool = False

    @property
    def takes_flows(self) -> bool:
        """Could take new flows, as far as health and people are concerned."""
        return self.up and self.weight > 0 and self.admin is AdminState.ENABLED

    def fails(self, check: Check) -> bool:
        """Whether this check of it is among those that keep it down."""
        pairs = zip(self.checks, self.healths, strict=True)
        return any(own == check and not health.is_up for own, health in pairs)

    @property
    def health_state(self) -> HealthState:
        """Of all checks together."""
        states = {one.state for one in self.healths}
        if self.up:
            return HealthState.FALLING if HealthState.FALLING in states else HealthState.UP
        return HealthState.DOWN if HealthState.DOWN in states else HealthState.RISING


def new(
    id_: BackendId,
    real: Real,
    checks: tuple[Check, ...],
    *,
    sorry: bool,
    adopted: bool,
    wanted: tuple[AdminState, int],
    now: float,
) -> Backend:
    """A backend that wasn't there before. `adopted`: an earlier run of the balancer has it up. Without checks
    it is up."""
    healths = tuple(health.initial(adopted, check.quorum) for check in checks)
    why = "up before this start" if adopted else "not probed yet" if checks else "no checks"
    joined = None if adopted else now
    up = all(one.is_up for one in healths)
    return Backend(id_, real, sorry, checks, healths, up, *wanted, now, why, joined)


def probed(
    backend: Backend, check: Check, ok: bool, why: str, policy: Damping | None, now: float
) -> tuple[Backend, Health, Health]:
    """The backend after a probe by one of its checks, and the health of that check before and after it."""
    index = backend.checks.index(check)
    before = backend.healths[index]
    after = health.step(before, ok, check.rise, check.fall, check.quorum)
    # One that is down is so from its first failure on; what was taken to be up is so after its first success.
    first = not backend.judged and ok == backend.up == after.is_up
    if after == before and not first:
        return backend, before, before
    healths = (*backend.healths[:index], after, *backend.healths[index + 1 :])
    up = after.is_up and all(one.is_up for one in healths)
    if up == backend.up:
        said = f"{check.name}: {why}" if first else backend.why
        return replace(backend, healths=healths, why=said, judged=backend.judged or first), before, after
    points = backend.points if up else damping.went_down(backend.points, policy, now)
    joined = now if up else backend.joined
    changed = replace(
        backend,
        healths=healths,
        up=up,
        since=now,
        why=f"{check.name}: {why}",
        joined=joined,
        points=points,
        judged=True,
    )
    return changed, before, after


def wanted(backend: Backend, admin: AdminState, weight: int, now: float) -> Backend:
    """The backend when people want this of it. One that was disabled begins anew, so slowly."""
    if (admin, weight) == (backend.admin, backend.weight):
        return backend
    back = backend.admin is AdminState.DISABLED and backend.up
    return replace(backend, admin=admin, weight=weight, joined=now if back else backend.joined)


def reconfigured(
    backend: Backend,
    real: Real,
    checks: tuple[Check, ...],
    *,
    sorry: bool,
    policy: Damping | None,
    now: float,
) -> Backend:
    """The backend under a changed configuration: checks of the same name and type keep what they know, and a
    new check begins as the backend is.
    """
    points = damping.NONE if policy is None else backend.points
    if (real, checks, sorry, points) == (backend.real, backend.checks, backend.sorry, backend.points):
        return backend
    healths = tuple(_carried(backend, check) for check in checks)
    up = all(one.is_up for one in healths)
    changed = replace(backend, real=real, checks=checks, healths=healths, sorry=sorry, points=points)
    if up == backend.up:
        return changed
    return replace(changed, up=up, since=now, why="the check that failed is gone", joined=now)


def _carried(backend: Backend, check: Check) -> Health:
    same = [i for i, old in enumerate(backend.checks) if old == check]
    alike = [i for i, old in enumerate(backend.checks) if (old.name, old.type) == (check.name, check.type)]
    for index in (*same, *alike):
        return health.adapted(backend.healths[index], backend.checks[index].quorum, check.quorum)
    return health.initial(backend.up, check.quorum)
