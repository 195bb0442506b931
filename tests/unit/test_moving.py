"""From one configuration to another in steps: what is there meanwhile, and the way back."""

from __future__ import annotations

import asyncio
import random
from ipaddress import ip_address

import pytest

from vc5py import config, moving
from vc5py.core import director
from vc5py.dataplane.fake import check
from vc5py.model import BackendId, Desired, ServiceState, VirtualServiceId
from vc5py.moving import Move

VIPS = [ip_address(f"192.0.2.{n}") for n in range(1, 5)]


def text(services: dict[str, tuple[int, int, int]]) -> str:
    """Services by name: number of the VIP, port, need."""
    lines = [
        f"  - {{name: {name}, addr: {VIPS[vip]}, port: {port}, need: {need}, real: g, checks: [{CHECK}]}}"
        for name, (vip, port, need) in services.items()
    ]
    return "services:\n" + "\n".join(lines) + "\nreals: {g: [10.0.0.1, 10.0.0.2, 10.0.0.3]}\n"


CHECK = "{name: c, type: tcp, port: 80, rise: 1, fall: 1}"


def start(services: dict[str, tuple[int, int, int]]) -> director.State:
    return director.start(config.parse(text(services), "x.yaml"), lambda _: True, 0.0)


def prepared(state: director.State, services: dict[str, tuple[int, int, int]]) -> Move:
    move = Move()
    asyncio.run(move.prepare(state, config.parse(text(services), "x.yaml"), 1.0))
    return move


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "STEP_BACKENDS", 1)


def names(desired: Desired) -> set[str]:
    return {state.id.service for state in desired.services}


def ports(desired: Desired) -> dict[str, int]:
    return {state.id.service: state.ports[0][0] for state in desired.services}


def test_one_service_at_a_time_and_back() -> None:
    old = start({"a": (0, 80, 1), "b": (1, 80, 1), "gone": (2, 80, 1)})
    move = prepared(old, {"b": (1, 81, 1), "a": (0, 81, 1), "new": (3, 80, 1)})
    seen = [ports(old.desired)]
    while move.forward():
        seen.append(ports(move.mixed(old.desired)))
    assert [sum(port == 81 for port in one.values()) for one in seen] == [0, 1, 2, 2]
    assert [len(one) for one in seen] == [3, 3, 3, 4]
    assert [state.id.service for state in move.leaving(old.desired)] == ["gone"]
    for one in reversed(seen[:-1]):
        assert move.back()
        assert ports(move.mixed(old.desired)) == one
    assert not move.back()
    assert move.mixed(old.desired) is old.desired


def test_what_stays_is_not_touched() -> None:
    old = start({"a": (0, 80, 1), "b": (1, 80, 1)})
    move = prepared(old, {"b": (1, 80, 1), "new": (2, 80, 1), "a": (0, 80, 1)})
    assert move.forward() and not move.forward()
    before = {state.id: state for state in old.desired.services}
    after = {state.id: state for state in move.mixed(old.desired).services}
    assert all(after[id_] is state for id_, state in before.items())
    assert names(move.mixed(old.desired)) == {"a", "b", "new"}


def test_a_port_goes_from_one_service_to_another_in_one_step() -> None:
    old = start({"a": (0, 80, 1), "b": (0, 81, 1), "c": (0, 82, 1)})
    move = prepared(old, {"renamed": (0, 80, 1), "b": (0, 82, 1), "c": (0, 81, 1)})
    seen = []
    while move.forward():
        check(move.mixed(old.desired))
        seen.append(ports(move.mixed(old.desired)))
    assert {"a": 80, "b": 82, "c": 81} in seen or {"renamed": 80, "b": 81, "c": 82} in seen
    assert seen[-1] == {"renamed": 80, "b": 82, "c": 81}
    assert move.leaving(old.desired) == ()


def test_what_happens_meanwhile_happens_to_both() -> None:
    old = start({"a": (0, 80, 1), "b": (1, 80, 1)})
    move = Move()
    new = {"a": (0, 81, 3), "b": (1, 81, 1)}
    backend = BackendId("a", VIPS[0], ip_address("10.0.0.1"))
    event = director.Probed(backend, old.config.services[0].checks[0], False, "refused")
    state, actions = director.step(old, event, 1.5)
    move.note(event, 1.5, actions)  # while the new state is being made
    asyncio.run(move.prepare(old, config.parse(text(new), "x.yaml"), 1.0))
    down = [b.id.real for s in move.state.desired.services for b in s.backends if not b.up]
    assert down == [backend.real]
    assert VIPS[0] not in move.state.desired.announce, "needs three now"
    said = [action for action in move.actions() if isinstance(action, director.Transition)]
    assert {action.what for action in said} == {"service", "vip"}, "of the real it has been said"
    while move.forward():
        pass
    assert move.mixed(state.desired).announce == {VIPS[1]}, "withdrawn as soon as it has moved"


def random_services(source: random.Random) -> dict[str, tuple[int, int, int]]:
    places = source.sample([(vip, port) for vip in range(4) for port in range(80, 83)], source.randint(1, 8))
    chosen = source.sample("abcdefghij", len(places))
    return {name: (vip, port, source.randint(1, 2)) for name, (vip, port) in zip(chosen, places, strict=True)}


@pytest.mark.parametrize("seed", range(60))
def test_every_step_makes_sense_and_the_last_is_the_new_configuration(seed: int) -> None:
    source = random.Random(seed)
    old = start(random_services(source))
    move = prepared(old, random_services(source))
    before = {state.id: state for state in old.desired.services}
    after = {state.id: state for state in move.state.desired.services}
    while move.forward():
        desired = move.mixed(old.desired)
        check(desired)
        for state in desired.services:
            assert state is before.get(state.id) or state is after.get(state.id)
    left = move.leaving(old.desired)
    there: dict[VirtualServiceId, ServiceState] = {s.id: s for s in move.mixed(old.desired).services}
    assert there == after | {state.id: state for state in left}
    assert not {state.id for state in left} & after.keys()


def test_parts_end_with_nothing() -> None:
    services = start({"a": (0, 80, 1), "b": (1, 80, 1)}).desired.services
    assert moving.parts(services) == [services[1:], ()]
    assert moving.parts(()) == []
