"""Commands on reals into events for the director, and what came of them. Pure.

The last command wins: one on a real in all services takes back what was said of it in single ones. A command
that asks for what holds anyway, by the file or by what was said of all services, leaves nothing behind that
would stand against a later change of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from vc5py.control.interface import Effective, UnknownTargetError
from vc5py.core.admin import Overrides
from vc5py.core.director import AdminChanged, State, WeightChanged
from vc5py.model import AdminState, IPAddress, Real, Service, VipState, VirtualServiceId
from vc5py.snapshot import OverrideSnapshot


@dataclass(frozen=True, slots=True)
class Target:
    """A real, in one service or (None) in all that have it."""

    real: IPAddress
    service: str | None


def _reals(service: Service) -> tuple[Real, ...]:
    return service.reals if service.sorry is None else (*service.reals, *service.sorry.reals)


def _places(state: State, target: Target) -> Iterator[tuple[Service, Real]]:
    """The services concerned, each with the real as the file has it there."""
    for service in state.config.services:
        if target.service in (None, service.name):
            for real in _reals(service):
                if real.address == target.real:
                    yield service, real


def _meant(given: object, known: Iterable[object]) -> str:
    close = get_close_matches(str(given), sorted(set(map(str, known))))
    return f"; did you mean {' or '.join(close)}?" if close else ""


def must_exist(state: State, target: Target) -> None:
    """UnknownTargetError, with a suggestion, where no service concerned has the real."""
    if any(_places(state, target)):
        return
    services = state.config.services
    names = [service.name for service in services]
    if target.service is not None and target.service not in names:
        meant = _meant(target.service, names)
        raise UnknownTargetError(f"no service {target.service!r} in the configuration{meant}")
    has = [s.name for s in services if any(real.address == target.real for real in _reals(s))]
    if has:
        where = ", ".join(has)
        raise UnknownTargetError(f"service {target.service!r} has no real {target.real}; it is in {where}")
    if target.real in state.failing:
        raise UnknownTargetError(f"{target.real} is a VIP, and no real: see vc5py vip --help")
    inside = [s for s in services if target.service in (None, s.name)]
    meant = _meant(target.real, (real.address for service in inside for real in _reals(service)))
    where = "the configuration" if target.service is None else f"service {target.service!r}"
    raise UnknownTargetError(f"no real {target.real} in {where}{meant}")


def must_be_vip(state: State, vip: IPAddress, wanted: VipState | None) -> None:
    """UnknownTargetError where no service has the VIP; one that is gone can still be set back."""
    if vip in state.failing or (wanted is None and vip in state.overrides.vips):
        return
    raise UnknownTargetError(f"no VIP {vip} in the configuration{_meant(vip, state.failing)}")


def _without(overrides: Overrides, target: Target) -> Overrides:
    """As if nothing had been said of the target, nor, if it is in all services, in any of them."""
    for service, real in list(overrides.reals):
        if real == target.real and target.service in (None, service):
            overrides = overrides.with_state(real, service, None).with_weight(real, service, None)
    return overrides


def _said_of_single_ones(state: State, target: Target) -> list[str]:
    if target.service is not None:
        return []
    return [name for name, real in state.overrides.reals if real == target.real and name is not None]


def set_state(state: State, target: Target, wanted: AdminState) -> Iterator[AdminChanged]:
    bare = _without(state.overrides, target)
    needed = any(bare.state_of(service.name, real) is not wanted for service, real in _places(state, target))
    yield AdminChanged(target.real, target.service, wanted if needed else None)
    for service in _said_of_single_ones(state, target):
        yield AdminChanged(target.real, service, None)


def set_weight(state: State, target: Target, wanted: int | None) -> Iterator[WeightChanged]:
    """None: as configured."""
    bare = _without(state.overrides, target)
    needed = any(bare.weight_of(service.name, real) != wanted for service, real in _places(state, target))
    yield WeightChanged(target.real, target.service, wanted if needed else None)
    for service in _said_of_single_ones(state, target):
        yield WeightChanged(target.real, service, None)


def reset(state: State, target: Target) -> Iterator[AdminChanged | WeightChanged]:
    """State and weight as configured again. A real that is no longer configured can be reset too."""
    if not any(key in state.overrides.reals for key in _keys(state, target)):
        must_exist(state, target)
    for service in (target.service, *_said_of_single_ones(state, target)):
        yield AdminChanged(target.real, service, None)
        yield WeightChanged(target.real, service, None)


def _keys(state: State, target: Target) -> Iterator[tuple[str | None, IPAddress]]:
    for service in (target.service, *_said_of_single_ones(state, target)):
        yield service, target.real


def effective(state: State, target: Target) -> tuple[Effective, ...]:
    """What the target is set to now, in every virtual service concerned."""
    return tuple(
        Effective(
            VirtualServiceId(service.name, vip),
            state.overrides.state_of(service.name, real),
            state.overrides.weight_of(service.name, real),
        )
        for service, real in _places(state, target)
        for vip in service.vips
    )


def withdrawals(before: State, after: State, now: float) -> tuple[str, ...]:
    """What a command on a real has cost: a sentence for each VIP that is no longer announced by it."""
    gone = sorted(before.desired.announce - after.desired.announce, key=lambda vip: (vip.version, int(vip)))
    return tuple(
        f"VIP {vip} is withdrawn: {why}; what is open through it ends, unless another balancer announces it"
        for vip, why in after.why_withdrawn(gone, now).items()
    )


def shown(overrides: Overrides) -> tuple[OverrideSnapshot, ...]:
    """Everything that was said, in a stable order."""
    keys = sorted(overrides.reals, key=lambda key: (key[1].version, int(key[1]), key[0] or ""))
    return tuple(
        OverrideSnapshot(
            real, service, overrides.reals[service, real].state, overrides.reals[service, real].weight
        )
        for service, real in keys
    )


def notes(state: State) -> tuple[str, ...]:
    """Where the file says one thing of a real, and a command another, which counts."""
    return tuple(_notes(state))


def _notes(state: State) -> Iterator[str]:
    for real in dict.fromkeys(real for _, real in state.overrides.reals):
        for service, filed in _places(state, Target(real, None)):
            admin = state.overrides.state_of(service.name, filed)
            weight = state.overrides.weight_of(service.name, filed)
            which = f"{real} in {service.name}"
            if admin is not filed.admin:
                yield f"{which} stays {admin} by command; the file says {filed.admin}"
            if weight != filed.weight:
                yield f"{which} keeps weight {weight} by command; the file says {filed.weight}"
