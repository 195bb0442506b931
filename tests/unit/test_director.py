"""The director: events in, wanted states and log lines out, against a plain restatement of the rules."""

from __future__ import annotations

import copy
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core import director, health
from vc5py.core.director import Action, Install, Pace, Probed, State, Tick, Transition
from vc5py.model import (
    BackendId,
    Check,
    CheckType,
    Config,
    IPAddress,
    Protocol,
    Real,
    Service,
    VirtualServiceId,
)

VIP1, VIP2 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
REALS = tuple(Real(IPv4Address("10.0.0.1") + n) for n in range(3))
TCP = Check("tcp check", CheckType.TCP, 80, rise=2, fall=3)
WEB = Check("web check", CheckType.HTTP, 80, rise=1, fall=1)


def service(
    name: str = "web",
    *,
    vips: tuple[IPAddress, ...] = (VIP1,),
    reals: int = 2,
    need: int = 1,
    checks: tuple[Check, ...] = (TCP,),
) -> Service:
    return Service(name, "", vips, (80, 443), (Protocol.TCP, Protocol.UDP), REALS[:reals], need, checks)


def start(*services: Service, up: bool = False, learn_s: float = 0.0, now: float = 0.0) -> State:
    return director.start(Config(services, learn_s), lambda _: up, now)


def backend(n: int, name: str = "web", vip: IPAddress = VIP1) -> BackendId:
    return BackendId(name, vip, REALS[n].address)


def feed(state: State, *events: director.Event, now: float = 1.0) -> tuple[State, list[Action]]:
    actions: list[Action] = []
    for event in events:
        state, more = director.step(state, event, now)
        actions += more
    return state, actions


def good(n: int, check: Check = TCP, **which: object) -> Probed:
    return Probed(backend(n, **which), check, True, "ok")  # type: ignore[arg-type]


def bad(n: int, check: Check = TCP, **which: object) -> Probed:
    return Probed(backend(n, **which), check, False, "refused")  # type: ignore[arg-type]


def ups(state: State) -> dict[BackendId, bool]:
    return {b.id: b.up for s in state.desired.services for b in s.backends}


# The start


def test_fresh_start_has_everything_down_and_nothing_announced() -> None:
    state = start(service(vips=(VIP1, VIP2)))
    assert set(state.services) == {VirtualServiceId("web", VIP1), VirtualServiceId("web", VIP2)}
    assert ups(state) == {backend(n, vip=vip): False for n in (0, 1) for vip in (VIP1, VIP2)}
    assert state.desired.announce == frozenset()
    assert all(b.weight == 0 for s in state.desired.services for b in s.backends)


def test_ports_are_every_port_with_every_protocol() -> None:
    (only,) = start(service()).desired.services
    assert set(only.ports) == {(port, protocol) for port in (80, 443) for protocol in Protocol}
    assert len(only.ports) == 4


def test_targets_are_every_backend_with_every_check() -> None:
    state = start(service(vips=(VIP1, VIP2), checks=(TCP, WEB)), service("bare", checks=()))
    assert list(state.targets()) == [
        (backend(n, vip=vip), check) for vip in (VIP1, VIP2) for n in (0, 1) for check in (TCP, WEB)
    ]


def test_what_an_earlier_run_left_up_is_announced_at_once() -> None:
    state = director.start(Config((service(),), learn_s=60), lambda b: b == backend(1), now=5.0)
    assert ups(state) == {backend(0): False, backend(1): True}
    assert state.desired.announce == {VIP1}


def test_service_without_checks_is_up_but_a_fresh_node_listens_first() -> None:
    state = start(service(checks=()), learn_s=10, now=100.0)
    assert all(ups(state).values())
    state, actions = feed(state, Tick(), now=109.9)
    assert (state.desired.announce, actions) == (frozenset(), [])
    state, actions = feed(state, Tick(), now=110.0)
    assert state.desired.announce == {VIP1}
    assert actions == [
        Transition("vip", str(VIP1), "announced", "by the health of its services"),
        Install(state.desired),
    ]
    assert feed(state, Tick(), now=111.0) == (state, [])


# Steps


def test_backend_comes_up_by_rise_and_is_installed() -> None:
    state, actions = feed(start(service(need=2)), good(0))
    assert actions == [Pace(backend(0), TCP, True)]
    state, actions = feed(state, good(0))
    assert ups(state) == {backend(0): True, backend(1): False}
    assert state.desired.services[0].backends[0].weight == 1
    assert actions == [
        Transition("backend", str(backend(0)), "up", "tcp check: ok"),
        Pace(backend(0), TCP, False),
        Install(state.desired),
    ]
    assert state.desired.announce == frozenset()


def test_enough_backends_make_the_service_healthy_and_announce_the_vip() -> None:
    state, _ = feed(start(service(need=2)), good(0), good(0), good(1))
    state, actions = feed(state, good(1))
    assert state.desired.announce == {VIP1}
    assert actions == [
        Transition("backend", str(backend(1)), "up", "tcp check: ok"),
        Pace(backend(1), TCP, False),
        Transition("service", f"web@{VIP1}", "healthy", "2 of 2 up, 2 needed"),
        Transition("vip", str(VIP1), "announced", "by the health of its services"),
        Install(state.desired),
    ]


def test_backend_goes_down_by_fall_and_the_vip_with_the_last_needed_one() -> None:
    state, actions = feed(start(service(need=2), up=True), bad(0), bad(0), good(0), bad(0), bad(0))
    assert actions == [Pace(backend(0), TCP, fast) for fast in (True, False, True)]
    state, actions = feed(state, bad(0))
    assert ups(state) == {backend(0): False, backend(1): True}
    assert state.desired.announce == frozenset()
    assert actions == [
        Transition("backend", str(backend(0)), "down", "tcp check: refused"),
        Pace(backend(0), TCP, False),
        Transition("service", f"web@{VIP1}", "unhealthy", "1 of 2 up, 2 needed"),
        Transition("vip", str(VIP1), "withdrawn", "by the health of its services"),
        Install(state.desired),
    ]


def test_backend_is_up_only_while_all_of_its_checks_are() -> None:
    one = service(reals=1, checks=(TCP, WEB))
    state, _ = feed(start(one), good(0, TCP), good(0, TCP))
    assert ups(state) == {backend(0): False}
    state, actions = feed(state, good(0, WEB))
    assert ups(state) == {backend(0): True}
    assert actions[0] == Transition("backend", str(backend(0)), "up", "web check: ok")
    state, _ = feed(state, bad(0, WEB))
    assert ups(state) == {backend(0): False}


def test_unhealthy_service_withdraws_the_vip_of_its_neighbours_but_no_other() -> None:
    services = service("a", vips=(VIP1, VIP2), reals=1), service("b", vips=(VIP1,), reals=1)
    state, _ = feed(start(*services, up=True), *[bad(0, name="b")] * 3)
    assert state.desired.announce == {VIP2}
    assert ups(state)[backend(0, name="a")]


def test_unchanged_health_gives_the_very_same_state() -> None:
    state = start(service(), up=True)
    same, actions = director.step(state, good(0), 1.0)
    assert same is state
    assert actions == ()


@pytest.mark.parametrize(
    "event",
    [
        Probed(backend(2), TCP, True),
        Probed(backend(0, name="gone"), TCP, True),
        Probed(backend(0, vip=VIP2), TCP, True),
        Probed(backend(0), WEB, True),
        Probed(backend(0), replace(TCP, port=81), True),
    ],
)
def test_result_of_what_has_gone_changes_nothing(event: Probed) -> None:
    state = start(service())
    assert director.step(state, event, 1.0) == (state, ())


# Any sequence

SERVICES = (
    service("a", vips=(VIP1, VIP2), reals=3, need=2, checks=(TCP, WEB)),
    service("b", vips=(VIP2,), reals=2, need=1, checks=(WEB,)),
    service("c", vips=(VIP1,), reals=1, need=1, checks=()),
)
TARGETS = list(start(*SERVICES).targets())
LEARN_S = 5.0

probes = st.builds(
    lambda target, ok: Probed(target[0], target[1], ok), st.sampled_from(TARGETS), st.booleans()
)
events = st.lists(st.tuples(st.one_of(probes, probes, st.just(Tick())), st.floats(0, 2)), max_size=80)


def says(state: State, now: float, announce_from: float) -> frozenset[IPAddress]:
    """The VIPs that the rules announce, from nothing but the healths."""
    bad_vips = set()
    for virtual in state.services.values():
        backends = [backend(n, virtual.id.service, virtual.id.vip) for n in range(len(virtual.service.reals))]
        healthy = [all(virtual.health[b, c].is_up for c in virtual.service.checks) for b in backends]
        assert ups(state) | dict(zip(backends, healthy, strict=True)) == ups(state)
        if sum(healthy) < virtual.service.need:
            bad_vips.add(virtual.id.vip)
    return frozenset({VIP1, VIP2} - bad_vips) if now >= announce_from else frozenset()


@given(events, st.frozensets(st.sampled_from([b for b, _ in TARGETS])))
def test_outcome_is_a_function_of_health_and_time(
    row: list[tuple[director.Event, float]], was_up: frozenset[BackendId]
) -> None:
    now = 1000.0
    state = director.start(Config(SERVICES[:2], LEARN_S), was_up.__contains__, now)
    announce_from = now if was_up else now + LEARN_S
    healths = {target: health.initial(target[0] in was_up) for target in state.targets()}
    assert state.desired.announce == says(state, now, announce_from)
    for event, seconds in row:
        now += seconds
        if isinstance(event, Probed):
            target = event.backend, event.check
            healths[target] = health.step(healths[target], event.ok, event.check.rise, event.check.fall)
        state, _ = director.step(state, event, now)
        assert {t: h for v in state.services.values() for t, h in v.health.items()} == healths
        state, _ = director.step(state, Tick(), now)
        assert state.desired.announce == says(state, now, announce_from)


@given(events)
def test_actions_tell_every_change_and_nothing_else(row: list[tuple[director.Event, float]]) -> None:
    """Whoever only listens to the actions knows all that there is to know."""
    now = 0.0
    state = start(*SERVICES, learn_s=LEARN_S)
    installed = state.desired
    up = {str(b) for b, is_up in ups(state).items() if is_up}
    announced = set(map(str, state.desired.announce))
    fast: dict[object, bool] = {}
    for event, seconds in row:
        now += seconds
        state, actions = director.step(state, event, now)
        for action in actions:
            match action:
                case Install(desired):
                    assert desired != installed
                    assert action is actions[-1]
                    installed = desired
                case Transition("backend", name, new):
                    assert (name in up) == (new == "down")
                    up ^= {name}
                case Transition("vip", name, new):
                    assert (name in announced) == (new == "withdrawn")
                    announced ^= {name}
                case Pace(b, check, is_fast):
                    assert fast.get((b, check), False) != is_fast
                    fast[b, check] = is_fast
        assert installed == state.desired
        assert up == {str(b) for b, is_up in ups(state).items() if is_up}
        assert announced == set(map(str, state.desired.announce))
        for virtual in state.services.values():
            for target, one in virtual.health.items():
                assert fast.get(target, False) == one.state.is_changing


@given(events)
def test_step_never_changes_a_state(row: list[tuple[director.Event, float]]) -> None:
    state = start(*SERVICES, learn_s=LEARN_S)
    for event, seconds in row:
        kept = state.services, state.announce_from, state.desired
        before = {i: (v, dict(v.health)) for i, v in state.services.items()}, copy.deepcopy(state.desired)
        after, _ = director.step(state, event, seconds)
        assert (state.services, state.announce_from, state.desired) == kept
        assert ({i: (v, dict(v.health)) for i, v in state.services.items()}, state.desired) == before
        state = after
