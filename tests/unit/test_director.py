"""The director: events in, wanted states and log lines out."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import IPv4Address
from types import FrameType

import pytest

from tests.unit.directing import (
    REALS,
    TCP,
    VIP1,
    VIP2,
    VIP3,
    WEB,
    backend,
    backends,
    bad,
    feed,
    good,
    service,
    start,
    ups,
)
from vc5py.core import director
from vc5py.core.director import Install, Pace, Probed, State, Tick, Transition
from vc5py.core.health import HealthState
from vc5py.model import AdminState, BackendId, Check, CheckType, Protocol, Real, Service, VirtualServiceId

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


def test_a_check_that_is_there_twice_counts_once() -> None:
    state = start(service(reals=1, checks=(WEB, replace(WEB))))
    assert list(state.targets()) == [(backend(0), WEB)]
    assert ups(feed(state, good(0, WEB))[0]) == {backend(0): True}


def test_what_an_earlier_run_left_up_is_announced_at_once() -> None:
    state = start(service(), up={1}, learn_s=60, now=5.0)
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
        Transition("vip", str(VIP1), "announced", "by the health of its services", 10.0),
        Install(state.desired),
    ]
    assert feed(state, Tick(), now=111.0)[0] is state


def test_knows_the_reals_of_the_configuration() -> None:
    state = start(service("a", reals=1), service("b", reals=2, vips=(VIP2,)))
    assert state.knows(REALS[1].address)
    assert state.knows(REALS[1].address, "b")
    assert not state.knows(REALS[1].address, "a")
    assert not state.knows(REALS[2].address)
    assert not state.knows(REALS[0].address, "c")


# Steps


def test_backend_comes_up_by_rise_and_is_installed() -> None:
    state, actions = feed(start(service(need=2)), good(0))
    assert actions == [Pace(backend(0), TCP, True)]
    state, actions = feed(state, good(0))
    assert ups(state) == {backend(0): True, backend(1): False}
    assert backends(state)[0].weight == 1
    assert actions == [
        Transition("backend", str(backend(0)), "up", "tcp check: ok", 1.0),
        Pace(backend(0), TCP, False),
        Install(state.desired),
    ]
    assert state.desired.announce == frozenset()


def test_enough_backends_make_the_service_healthy_and_announce_the_vip() -> None:
    state, _ = feed(start(service(need=2)), good(0), good(0), good(1))
    state, actions = feed(state, good(1))
    assert state.desired.announce == {VIP1}
    assert actions == [
        Transition("backend", str(backend(1)), "up", "tcp check: ok", 1.0),
        Pace(backend(1), TCP, False),
        Transition("service", f"web@{VIP1}", "healthy", "2 of 2 can serve, 2 needed", 1.0),
        Transition("vip", str(VIP1), "announced", "by the health of its services", 1.0),
        Install(state.desired),
    ]


def test_backend_goes_down_by_fall_and_the_vip_with_the_last_needed_one() -> None:
    state, actions = feed(start(service(need=2), up=True), bad(0), bad(0), good(0), bad(0), bad(0))
    assert actions == [Pace(backend(0), TCP, fast) for fast in (True, False, True)]
    state, actions = feed(state, bad(0), now=7.5)
    assert ups(state) == {backend(0): False, backend(1): True}
    assert state.desired.announce == frozenset()
    assert actions == [
        Transition("backend", str(backend(0)), "down", "tcp check: refused", 7.5),
        Pace(backend(0), TCP, False),
        Transition("service", f"web@{VIP1}", "unhealthy", "1 of 2 can serve, 1 down, 2 needed", 7.5),
        Transition("vip", str(VIP1), "withdrawn", "too few can serve web", 7.5),
        Install(state.desired),
    ]


def test_a_transition_says_how_long_the_state_before_lasted() -> None:
    state, _ = feed(start(service(reals=1, checks=(WEB,))), good(0, WEB), now=3.0)
    state, actions = feed(state, bad(0, WEB), now=10.0)
    assert [a.after_s for a in actions if isinstance(a, Transition)] == [7.0, 7.0, 7.0]
    state, actions = feed(state, good(0, WEB), now=10.5)
    assert [a.after_s for a in actions if isinstance(a, Transition)] == [0.5, 0.5, 0.5]


def test_backend_is_up_only_while_all_of_its_checks_are() -> None:
    one = service(reals=1, checks=(TCP, WEB))
    state, _ = feed(start(one), good(0, TCP), good(0, TCP))
    assert ups(state) == {backend(0): False}
    state, actions = feed(state, good(0, WEB))
    assert ups(state) == {backend(0): True}
    assert actions[0] == Transition("backend", str(backend(0)), "up", "web check: ok", 1.0)
    state, _ = feed(state, bad(0, WEB))
    assert ups(state) == {backend(0): False}


def test_a_check_may_go_by_m_of_n() -> None:
    check = Check("lossy", CheckType.TCP, 80, rise=9, fall=9, quorum=(2, 3))
    state, _ = feed(start(service(reals=1, checks=(check,))), good(0, check), bad(0, check))
    assert ups(state) == {backend(0): False}
    state, _ = feed(state, good(0, check))
    assert ups(state) == {backend(0): True}
    state, _ = feed(state, bad(0, check), good(0, check), good(0, check), bad(0, check))
    assert ups(state) == {backend(0): True}
    state, _ = feed(state, bad(0, check))
    assert ups(state) == {backend(0): False}


def test_unhealthy_service_withdraws_the_vip_of_its_neighbours_but_no_other() -> None:
    services = service("a", vips=(VIP1, VIP2), reals=1), service("b", vips=(VIP1,), reals=1)
    state, _ = feed(start(*services, up=True), *[bad(0, name="b")] * 3)
    assert state.desired.announce == {VIP2}
    assert ups(state)[backend(0, name="a")]


def test_a_vip_comes_back_with_the_last_of_its_services_only() -> None:
    services = [service(name, reals=1, checks=(WEB,)) for name in "abc"]
    state, _ = feed(start(*services, up=True), bad(0, WEB, name="a"), bad(0, WEB, name="b"))
    state, _ = feed(state, good(0, WEB, name="a"))
    assert state.desired.announce == frozenset()
    state, _ = feed(state, good(0, WEB, name="b"))
    assert state.desired.announce == {VIP1}


def test_unchanged_health_gives_the_very_same_state() -> None:
    state, _ = feed(start(service(), up=True), good(0))
    same, actions = director.step(state, good(0), 2.0)
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


# What is shown


def test_status_tells_all_of_a_backend() -> None:
    reals = (
        replace(REALS[0], weight=5),
        replace(REALS[1], tier=1),
        replace(REALS[2], admin=AdminState.DRAINING),
    )
    state = start(service(reals=reals, checks=(TCP, WEB)), up={0, 1, 2}, now=4.0)
    state, _ = feed(state, bad(0, TCP), bad(2, WEB), good(2, WEB), bad(1, WEB), now=9.0)
    first, second, third = state.services[VirtualServiceId("web", VIP1)].statuses
    assert (first.id, first.health, first.admin) == (backend(0), HealthState.FALLING, AdminState.ENABLED)
    assert (first.tier, first.serving, first.weight) == (0, True, 5)
    assert (first.why, first.since) == ("up before this start", 4.0)
    assert (second.health, second.tier, second.serving, second.weight) == (HealthState.DOWN, 1, False, 0)
    assert (second.why, second.since) == ("web check: refused", 9.0)
    assert (third.health, third.admin, third.serving) == (HealthState.UP, AdminState.DRAINING, False)
    assert not any(status.sorry or status.damped for status in (first, second, third))


def test_health_of_several_checks_is_that_of_the_worst() -> None:
    def shown(state: State) -> HealthState:
        return state.services[VirtualServiceId("web", VIP1)].statuses[0].health

    state = start(service(reals=1, checks=(TCP, WEB)))
    assert shown(state) is HealthState.DOWN
    state, _ = feed(state, good(0, TCP))
    assert shown(state) is HealthState.DOWN
    state, _ = feed(state, good(0, WEB))
    assert shown(state) is HealthState.RISING
    state, _ = feed(state, good(0, TCP))
    assert shown(state) is HealthState.UP
    state, _ = feed(state, bad(0, TCP))
    assert shown(state) is HealthState.FALLING


# What a step costs


def many(services: int, reals: int = 3) -> list[Service]:
    members = tuple(Real(IPv4Address("10.0.0.1") + n) for n in range(reals))
    first = IPv4Address("192.0.2.0")
    return [service(f"s{n}", vips=(first + n,), reals=members, checks=(WEB,)) for n in range(services)]


def calls(state: State, event: director.Event) -> int:
    """How many Python functions a step calls."""
    count = 0

    def note(frame: FrameType, what: str, arg: object) -> None:
        nonlocal count
        count += what == "call"

    sys.setprofile(note)
    try:
        director.step(state, event, 1.0)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "event",
    [
        Probed(BackendId("s0", IPv4Address("192.0.2.0"), REALS[0].address), WEB, False),
        Tick(),
    ],
)
def test_a_step_does_not_look_at_other_services(event: director.Event) -> None:
    few, lots = (start(*many(n), up=True) for n in (2, 200))
    assert calls(few, event) == calls(lots, event)


def test_other_services_stay_the_identical_objects() -> None:
    state = start(*many(20), up=True)
    event = Probed(BackendId("s7", IPv4Address("192.0.2.7"), REALS[0].address), WEB, False)
    after, _ = director.step(state, event, 1.0)
    pairs = list(zip(state.desired.services, after.desired.services, strict=True))
    assert [n for n, (old, new) in enumerate(pairs) if old is not new] == [7]
    old, new = pairs[7]
    assert [one is other for one, other in zip(old.backends, new.backends, strict=True)] == [
        False,
        True,
        True,
    ]


def test_vips_are_told_in_order() -> None:
    state, actions = feed(start(service(vips=(VIP3, VIP1, VIP2), checks=()), learn_s=1.0), Tick(), now=1.0)
    assert [a.name for a in actions if isinstance(a, Transition)] == [str(VIP1), str(VIP2), str(VIP3)]
    assert state.desired.announce == {VIP1, VIP2, VIP3}
