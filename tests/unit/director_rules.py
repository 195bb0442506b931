"""The rules of the director once more, in plain words, and the pools that its property tests draw from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.unit.directing import VIP1, VIP2, VIP3
from vc5py.core.admin import Overrides
from vc5py.model import (
    AdminState,
    BackendId,
    BelowNeed,
    Check,
    CheckType,
    Config,
    Desired,
    IPAddress,
    Real,
    Service,
    Standby,
)

VIPS = (VIP1, VIP2, VIP3)
NAMES = ("a", "b", "c", "d")
CHECKS = tuple(Check(name, CheckType.TCP, 80, rise=1, fall=1) for name in ("x", "y"))

# What holds when nobody flaps and nobody begins slowly


def rules(
    config: Config, overrides: Overrides, up: Callable[[BackendId], bool]
) -> tuple[dict[BackendId, int | None], set[IPAddress]]:
    """The weight of every backend, None for those that get no packets; and the VIPs to announce."""
    weights: dict[BackendId, int | None] = {}
    serves: dict[IPAddress, bool] = {}
    for service in config.services:
        for vip in service.vips:
            ok = _rules_of(service, vip, overrides, up, weights)
            serves[vip] = serves.get(vip, True) and ok
    return weights, {vip for vip, ok in serves.items() if ok}


def _rules_of(
    service: Service,
    vip: IPAddress,
    overrides: Overrides,
    up: Callable[[BackendId], bool],
    weights: dict[BackendId, int | None],
) -> bool:
    def able(reals: Iterable[Real]) -> list[Real]:
        found = []
        for real in reals:
            id_ = BackendId(service.name, vip, real.address)
            state = overrides.state_of(service.name, real)
            alive = up(id_) and state is not AdminState.DISABLED
            weights[id_] = 0 if alive else None
            if alive and state is AdminState.ENABLED and overrides.weight_of(service.name, real):
                found.append(real)
        return found

    own = able(service.reals)
    sorry = able(service.sorry.reals) if service.sorry else []
    enough = bool(own) and len(own) >= service.need
    serving = own if enough or not sorry else sorry
    for real in _front(serving, service.min_up, service.standby):
        weights[BackendId(service.name, vip, real.address)] = overrides.weight_of(service.name, real)
    return enough or bool(sorry) or (bool(own) and service.below_need is BelowNeed.SERVE)


def _front(reals: list[Real], min_up: int, standby: Standby) -> list[Real]:
    for tier in range(8):
        if standby is Standby.REPLACE:
            some = [real for real in reals if real.tier == tier]
        else:
            some = [real for real in reals if real.tier <= tier]
        if len(some) >= min_up:
            return some
    return reals


def installed(desired: Desired) -> dict[BackendId, int | None]:
    return {b.id: b.weight if b.up else None for s in desired.services for b in s.backends}
