"""What the tests of the director share: services in a few words, events in a row, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from vc5py.core import director
from vc5py.core.admin import NO_OVERRIDES, Overrides
from vc5py.core.director import Action, AdminChanged, Probed, State, Tick, Transition
from vc5py.model import (
    AdminState,
    BackendId,
    BackendState,
    Check,
    CheckType,
    Config,
    IPAddress,
    Protocol,
    Real,
    Service,
)

VIP1, VIP2, VIP3 = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
REALS = tuple(Real(IPv4Address("10.0.0.1") + n) for n in range(9))
TCP = Check("tcp check", CheckType.TCP, 80, rise=2, fall=3)
WEB = Check("web check", CheckType.HTTP, 80, rise=1, fall=1)


def service(
    name: str = "web",
    *,
    vips: tuple[IPAddress, ...] = (VIP1,),
    reals: int | tuple[Real, ...] = 2,
    need: int = 1,
    checks: tuple[Check, ...] = (TCP,),
    **more: Any,
) -> Service:
    """`more`: further fields of the service. Reals may flap, unless it says otherwise."""
    members = REALS[:reals] if isinstance(reals, int) else reals
    ports, protocols = (80, 443), (Protocol.TCP, Protocol.UDP)
    made = Service(name, "", vips, ports, protocols, members, need, checks, damping=None)
    return replace(made, **more)


def real(n: int, **fields: Any) -> Real:
    return replace(REALS[n], **fields)


def start(
    *services: Service,
    up: bool | Iterable[int] = False,
    learn_s: float = 0.0,
    now: float = 0.0,
    overrides: Overrides = NO_OVERRIDES,
) -> State:
    """`up`: what an earlier run left up: all, nothing, or these reals."""
    known = None if isinstance(up, bool) else {REALS[n].address for n in up}

    def was_up(backend: BackendId) -> bool:
        return bool(up) if known is None else backend.real in known

    return director.start(Config(services, learn_s), was_up, now, overrides)


def backend(n: int, name: str = "web", vip: IPAddress = VIP1) -> BackendId:
    return BackendId(name, vip, REALS[n].address)


def feed(state: State, *events: director.Event, now: float = 1.0) -> tuple[State, list[Action]]:
    actions: list[Action] = []
    for event in events:
        state, more = director.step(state, event, now)
        actions += more
    return state, actions


def good(n: int, check: Check = TCP, **which: Any) -> Probed:
    return Probed(backend(n, **which), check, True, "ok")


def bad(n: int, check: Check = TCP, **which: Any) -> Probed:
    return Probed(backend(n, **which), check, False, "refused")


def rises(state: State, *numbers: int, now: float = 1.0, name: str = "web") -> State:
    """These reals come up, by WEB alone."""
    return feed(state, *[good(n, WEB, name=name) for n in numbers], now=now)[0]


def falls(state: State, *numbers: int, now: float = 1.0, name: str = "web") -> State:
    return feed(state, *[bad(n, WEB, name=name) for n in numbers], now=now)[0]


def admin(n: int, state: AdminState | None, service: str | None = None) -> AdminChanged:
    return AdminChanged(REALS[n].address, service, state)


def tick(state: State, now: float) -> State:
    return feed(state, Tick(), now=now)[0]


def backends(state: State, name: str = "web", vip: IPAddress = VIP1) -> tuple[BackendState, ...]:
    (one,) = [s for s in state.desired.services if (s.id.service, s.id.vip) == (name, vip)]
    return one.backends


def weights(state: State, name: str = "web") -> list[int | None]:
    """Of each backend: its weight, None if it is down in the data plane."""
    return [b.weight if b.up else None for b in backends(state, name)]


def ups(state: State) -> dict[BackendId, bool]:
    return {b.id: b.up for s in state.desired.services for b in s.backends}


def said(actions: Iterable[Action], what: str) -> list[tuple[str, float | None]]:
    """The states, and how long after the one before, of all transitions of that kind."""
    return [(a.state, a.after_s) for a in actions if isinstance(a, Transition) and a.what == what]
