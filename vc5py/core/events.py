"""What the director takes in and what it gives out.

Must not know: how either comes about. All are frozen values without behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

from vc5py.model import AdminState, BackendId, Check, Config, Desired, IPAddress, VipState

# Events


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe has ended; `why` tells a person how."""

    backend: BackendId
    check: Check
    ok: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """There is a new configuration."""

    config: Config


@dataclass(frozen=True, slots=True)
class AdminChanged:
    """Somebody wants another state of a real, in one service or (None) in all of them. `state` None: what the
    next less specific word, in the end the file, says of it.
    """

    real: IPAddress
    service: str | None
    state: AdminState | None


@dataclass(frozen=True, slots=True)
class WeightChanged:
    """Likewise for its weight."""

    real: IPAddress
    service: str | None
    weight: int | None


@dataclass(frozen=True, slots=True)
class VipChanged:
    """Somebody wants a VIP announced or withdrawn, or (None) as its services are."""

    vip: IPAddress
    state: VipState | None


@dataclass(frozen=True, slots=True)
class CutOff:
    """Neither a router nor another balancer is heard any more: what happens out there is not known here."""


@dataclass(frozen=True, slots=True)
class RoutersLost:
    """No router hears us any more, while other balancers may go on: flows begin there."""


@dataclass(frozen=True, slots=True)
class RouterBack:
    """One hears us again. What began elsewhere has been asked for."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All flows that others know of are known here, or nobody is left who could tell."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """Why packets that come in somewhere get to nobody, whatever VIP they are for; empty: they do again."""

    why: str


Event = (
    Probed
    | Tick
    | Reloaded
    | AdminChanged
    | WeightChanged
    | VipChanged
    | CutOff
    | RoutersLost
    | RouterBack
    | CaughtUp
    | Unserved
)


# Actions


@dataclass(frozen=True, slots=True)
class Install:
    """Make the data plane equal to this, then the routes."""

    desired: Desired


@dataclass(frozen=True, slots=True)
class Retarget:
    """What is to be probed is no longer the same: see `State.targets`. Only after a reload; new targets begin
    at their usual interval, and a `Pace` for some of them may follow.
    """


@dataclass(frozen=True, slots=True)
class Pace:
    """Probe faster while a state is changing, and at the usual interval again afterwards."""

    backend: BackendId
    check: Check
    fast: bool


@dataclass(frozen=True, slots=True)
class Transition:
    """Something worth one line in the log: what, which, its state now, and why. `after_s`: how many seconds
    it was in the state before, as far as this process knows; None where there was none.

    `what`     `name`             `state`
    backend    BackendId          up, down
    damping    BackendId          kept-out, used (in spite of it), released
    service    VirtualServiceId   a `selection.Condition`: healthy, sorry, below-need, unhealthy
    tier       VirtualServiceId   the tiers that serve: 0, 1, 0+1, none
    vip        address            announced, withdrawn; said at run time: wanted=VipState, wanted=health
    real       [service/]address  an AdminState, file; weight=N, weight=file
    """

    what: str
    name: str
    state: str
    why: str
    after_s: float | None = None


Action = Install | Retarget | Pace | Transition
