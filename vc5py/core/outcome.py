"""What becomes of the backends of a virtual service once those that serve are selected.

Must not know: other virtual services, who selected and why. Invariant: whatever stays equal stays the
identical object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vc5py.core import weights
from vc5py.core.backend import Backend, Phase
from vc5py.core.events import Transition
from vc5py.model import AdminState, BackendState, Service, ServiceState


def damped(
    backends: tuple[Backend, ...], in_spite: Sequence[int], now: float
) -> tuple[tuple[Backend, ...], list[Transition]]:
    """The phases of the backends that flap, or did until now. One that may serve again begins slowly."""
    concerned = [i for i, b in enumerate(backends) if b.points.until > now or b.phase is not Phase.FREE]
    row, changes = list(backends), []
    for i in concerned:
        old = row[i]
        phase = _phase(old, i in in_spite, now)
        if phase is old.phase:
            continue
        joined = now if old.phase is Phase.KEPT_OUT and old.up else old.joined
        row[i] = replace(old, phase=phase, phase_since=now, joined=joined)
        after_s = None if old.phase_since is None else now - old.phase_since
        changes.append(Transition("damping", str(old.id), str(phase), _why(old, phase), after_s))
    return (tuple(row) if changes else backends), changes


def _phase(backend: Backend, in_spite: bool, now: float) -> Phase:
    if backend.points.until <= now:
        return Phase.FREE
    # One that is used although it flaps stays so while it is down: it is most likely to be used again.
    stays = backend.phase is Phase.USED and not backend.up
    return Phase.USED if in_spite or stays else Phase.KEPT_OUT


def _why(backend: Backend, phase: Phase) -> str:
    if phase is Phase.USED:
        return "too few others can serve"
    if phase is Phase.FREE:
        return "has not gone down for long enough"
    if backend.phase is Phase.USED:
        return "enough others can serve again"
    return f"went down too often: {backend.points.value:.1f} points"


def installed(
    service: Service,
    state: ServiceState,
    backends: Sequence[Backend],
    serving: Sequence[int],
    now: float,
) -> tuple[ServiceState, int]:
    """What the data plane is to do, having done `state`; and by how much all weights are multiplied."""
    steps = _steps(service, backends, serving, now)
    shares, scale = weights.scaled([backends[i].weight for i in serving], steps)
    share = dict(zip(serving, shares, strict=True))
    before = {b.id.real: b for b in state.backends} if len(state.backends) != len(backends) else None
    states = []
    for i, backend in enumerate(backends):
        old = before.get(backend.id.real) if before is not None else state.backends[i]
        states.append(_backend_state(backend, share.get(i, 0), old))
    if len(states) == len(state.backends) and all(map(_is, states, state.backends)):
        return state, scale
    return replace(state, backends=tuple(states)), scale


def _is(one: BackendState, other: BackendState) -> bool:
    return one is other


def _backend_state(backend: Backend, weight: int, old: BackendState | None) -> BackendState:
    up = backend.up and backend.admin is not AdminState.DISABLED
    forwarding = backend.real.forwarding
    same = (
        old is not None
        and old.up is up
        and old.weight == weight
        and old.id == backend.id
        and old.forwarding == forwarding
    )
    return old if same and old is not None else BackendState(backend.id, up, weight, forwarding)


def _steps(service: Service, backends: Sequence[Backend], serving: Sequence[int], now: float) -> list[int]:
    if service.slow_start_s <= 0:
        return [weights.STEPS] * len(serving)
    return [weights.ramp_step(backends[i].joined, service.slow_start_s, now) for i in serving]


def wake(service: Service, backends: Sequence[Backend], serving: Sequence[int], now: float) -> float:
    """When time alone changes something next."""
    times = [b.points.until for b in backends if b.phase is not Phase.FREE]
    if any(step < weights.STEPS for step in _steps(service, backends, serving, now)):
        times.append(weights.next_step_at(service.slow_start_s, now))
    return min(times, default=math.inf)
