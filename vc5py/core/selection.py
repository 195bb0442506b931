"""Which backends of a virtual service take new flows, and whether that is enough.

Must not know: probes, routes, weights of those it selects. A backend counts as healthy if it could take new
flows: its checks succeed, it is enabled, and its weight isn't 0.

In this order:
* One that flaps is kept out, unless fewer than `need`, or than `min_up`, would be left: then as many as it
  takes are used all the same, first those whose time is over first.
* With at least `need` left, in all tiers, the service is healthy: the tiers in front serve.
* Below `need` the sorry reals serve if one of them can. Else the tiers serve with what is left; it depends on
  `below_need` whether clients are still told to come.

Tiers: with `replace` the first tier that has `min_up` serves alone, with `join` as many of the first tiers as
have `min_up` together. Where none has, everybody serves: nothing is gained by leaving somebody out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vc5py.core.backend import Backend
from vc5py.model import BelowNeed, Service, Standby


class Condition(StrEnum):
    """How a virtual service is. Clients are told to come in all but the last."""

    HEALTHY = "healthy"
    SORRY = "sorry"
    BELOW_NEED = "below-need"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Selection:
    """Positions of backends, in no order. `healthy`: how many count towards `need`. `in_spite`: those
    used in spite of their flapping. `tiers`: those that serve, none while the sorry reals do.
    """

    condition: Condition
    healthy: int
    serving: Sequence[int]
    in_spite: Sequence[int] = ()
    tiers: tuple[int, ...] = ()


def select(service: Service, backends: Sequence[Backend], now: float) -> Selection:
    """Selects among the backends of the service and of its sorry service."""
    able = [i for i, backend in enumerate(backends) if backend.takes_flows]
    own = [i for i in able if not backends[i].sorry]
    own, in_spite = _undamped(service, backends, own, now)
    serving, tiers = _in_front(service, backends, own)
    if own and len(own) >= service.need:
        return Selection(Condition.HEALTHY, len(own), serving, in_spite, tiers)
    sorry = [i for i in able if backends[i].sorry]
    if sorry:
        return Selection(Condition.SORRY, len(own), _in_front(service, backends, sorry)[0], in_spite)
    serves = own and service.below_need is BelowNeed.SERVE
    condition = Condition.BELOW_NEED if serves else Condition.UNHEALTHY
    return Selection(condition, len(own), serving, in_spite, tiers)


def _undamped(
    service: Service, backends: Sequence[Backend], own: list[int], now: float
) -> tuple[list[int], list[int]]:
    """Those that aren't kept out, and who of them would be if there were enough others."""
    flapping = [i for i in own if backends[i].points.until > now]
    if not flapping:
        return own, []
    missing = max(service.need, service.min_up) - (len(own) - len(flapping))
    flapping.sort(key=lambda i: backends[i].points.until)
    out = set(flapping[max(0, missing) :])
    return [i for i in own if i not in out], [i for i in flapping if i not in out]


def _in_front(
    service: Service, backends: Sequence[Backend], able: list[int]
) -> tuple[list[int], tuple[int, ...]]:
    """Of those that are able, those of the tiers that serve, and these tiers."""
    tiers = sorted({backends[i].real.tier for i in able})
    if len(tiers) <= 1:
        return able, tuple(tiers)
    together: list[int] = []
    for number, tier in enumerate(tiers):
        alone = [i for i in able if backends[i].real.tier == tier]
        together += alone
        if service.standby is Standby.REPLACE and len(alone) >= service.min_up:
            return alone, (tier,)
        if service.standby is Standby.JOIN and len(together) >= service.min_up:
            return together, tuple(tiers[: number + 1])
    return able, tuple(tiers)
