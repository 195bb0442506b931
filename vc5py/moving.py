"""From one configuration to another in steps, none of which keeps the event loop for long.

Must not know: the data plane, routes. Until the end the director's old state is the one in force, and what
happens meanwhile happens to both, so that going back loses nothing.

Invariants: at every moment each service is there as the old or as the new state has it, and each (VIP, port,
protocol) belongs to one; a VIP stays announced only while nothing of it has moved to where it isn't to be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping

from vc5py.core import director
from vc5py.model import Config, Desired, ServiceState, VirtualServiceId

STEP_BACKENDS = 256
"""How many backends one step changes: some 20 ms of a data plane's time."""

_Ids = frozenset[VirtualServiceId]
_Told = frozenset[director.Transition]


def by_id(services: Iterable[ServiceState]) -> dict[VirtualServiceId, ServiceState]:
    return {state.id: state for state in services}


def groups(
    old: Mapping[VirtualServiceId, ServiceState], new: Mapping[VirtualServiceId, ServiceState]
) -> list[set[VirtualServiceId]]:
    """The services that change or come, together with those that one takes a port from."""
    holders = {(id_.vip, port): id_ for id_, state in old.items() for port in state.ports}
    group_of: dict[VirtualServiceId, set[VirtualServiceId]] = {}
    for id_, state in new.items():
        if old.get(id_) is state:
            continue
        group = group_of.setdefault(id_, {id_})
        for port in state.ports:
            holder = holders.get((id_.vip, port), id_)
            other = group_of.setdefault(holder, {holder})
            if other is not group:
                group |= other
                group_of.update(dict.fromkeys(other, group))
    return list({id(group): group for group in group_of.values()}.values())


def steps(old: Desired, new: Desired) -> list[_Ids]:
    """What is to change, in pieces of about `STEP_BACKENDS`; services that only go are in none."""
    before, after = by_id(old.services), by_id(new.services)
    out: list[_Ids] = []
    piece: set[VirtualServiceId] = set()
    size = 0
    for group in groups(before, after):
        piece |= group
        size += sum(len(after[id_].backends) for id_ in group if id_ in after)
        if size >= STEP_BACKENDS:
            out.append(frozenset(piece))
            piece, size = set(), 0
    return [*out, frozenset(piece)] if piece else out


class Move:
    """On the way from a director's state to that of another configuration."""

    def __init__(self) -> None:
        self._missed: list[tuple[director.Event, float, _Told]] = []
        self._state: director.State | None = None
        self._actions: list[director.Action] = []
        self._ahead: deque[_Ids] = deque()
        self._behind: list[_Ids] = []
        self._moved: set[VirtualServiceId] = set()

    async def prepare(self, state: director.State, config: Config, now: float) -> None:
        """Decides what the new state is, in a thread: that of a large configuration takes a second."""
        new, actions = await asyncio.to_thread(director.step, state, director.Reloaded(config), now)
        self._ahead.extend(steps(state.desired, new.desired))
        self._actions += actions
        self._state = new
        self._catch_up()

    def note(self, event: director.Event, now: float, actions: Iterable[director.Action]) -> None:
        """What happened to the state in force; `actions` followed from it there."""
        told = frozenset(action for action in actions if isinstance(action, director.Transition))
        self._missed.append((event, now, told))
        if self._state is not None:
            self._catch_up()

    def _catch_up(self) -> None:
        """Takes in what has happened; keeps for later what was not said or done of it already."""
        for event, now, told in self._missed:
            self._state, actions = director.step(self.state, event, now)
            for action in actions:
                if isinstance(action, director.Pace) or (
                    isinstance(action, director.Transition) and action not in told
                ):
                    self._actions.append(action)
        self._missed.clear()

    @property
    def state(self) -> director.State:
        assert self._state is not None
        return self._state

    def forward(self) -> bool:
        """One step on; False where there is none left."""
        if not self._ahead:
            return False
        self._behind.append(self._ahead.popleft())
        self._moved |= self._behind[-1]
        return True

    def back(self) -> bool:
        """One step back; False at the beginning."""
        if not self._behind:
            return False
        self._moved -= self._behind.pop()
        return True

    def mixed(self, old: Desired) -> Desired:
        """What is to be there at this step; `old`: what the state in force desires."""
        if not self._moved:
            return old
        fresh, moved = by_id(self.state.desired.services), self._moved
        there = {state.id for state in old.services}
        services = [fresh.get(state.id) if state.id in moved else state for state in old.services]
        added = [fresh[id_] for id_ in fresh if id_ in moved and id_ not in there]
        announce = old.announce - ({id_.vip for id_ in moved} - self.state.desired.announce)
        return Desired(tuple([state for state in (*services, *added) if state is not None]), announce)

    def leaving(self, old: Desired) -> tuple[ServiceState, ...]:
        """Services that are still there at the end and go then."""
        kept = by_id(self.state.desired.services).keys() | self._moved
        return tuple([state for state in old.services if state.id not in kept])

    def actions(self) -> list[director.Action]:
        """What is to be done once the new state is the one in force."""
        return self._actions


def parts(services: tuple[ServiceState, ...]) -> list[tuple[ServiceState, ...]]:
    """What is left of them after each of several steps of about `STEP_BACKENDS`; at last nothing."""
    out = []
    size = 0
    for position, state in enumerate(services, 1):
        size += len(state.backends)
        if size >= STEP_BACKENDS or position == len(services):
            out.append(services[position:])
            size = 0
    return out
