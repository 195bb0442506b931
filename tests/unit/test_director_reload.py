"""A reload: what is known stays known, what stays equal stays untouched, and all that changes is said."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.directing import (
    REALS,
    TCP,
    VIP1,
    VIP2,
    WEB,
    admin,
    backend,
    bad,
    falls,
    feed,
    good,
    real,
    rises,
    said,
    service,
    start,
    tick,
    ups,
    weights,
)
from vc5py.core import backend as backends
from vc5py.core.director import Action, Install, Pace, Reloaded, Retarget, State, Transition, WeightChanged
from vc5py.core.health import HealthState
from vc5py.model import (
    AdminState,
    BackendId,
    Check,
    CheckType,
    Config,
    Damping,
    Forwarding,
    ForwardMode,
    HttpRequest,
    Scheduling,
    Service,
    Sorry,
    Unknown,
    VirtualServiceId,
)

KNOWN = (VirtualServiceId("web", VIP1),)


def reload(state: State, *services: Service, now: float = 2.0, **config: Any) -> tuple[State, list[Action]]:
    return feed(state, Reloaded(replace(Config(services), **config)), now=now)


def test_the_same_configuration_read_again_does_nothing() -> None:
    one = service(checks=(TCP, WEB), sorry=Sorry((real(5),), (TCP,)))
    state = start(one, up=True)
    after, actions = reload(state, copy.deepcopy(one))
    assert actions == []
    assert after.desired is state.desired
    assert after.services[KNOWN[0]] is state.services[KNOWN[0]]


def test_services_that_stay_equal_stay_the_identical_objects() -> None:
    services = [service(name, vips=(VIP1, VIP2)) for name in "abc"]
    state = start(*services, up=True)
    after, actions = reload(state, services[0], replace(services[1], need=2), services[2])
    assert [new is old for new, old in zip(after.desired.services, state.desired.services, strict=True)] == [
        True
    ] * 6
    assert actions == []
    after, actions = reload(state, services[0], replace(services[1], ports=(81,)), services[2])
    untouched = [new is old for new, old in zip(after.desired.services, state.desired.services, strict=True)]
    assert untouched == [True, True, False, False, True, True]
    assert actions == [Install(after.desired)]


def test_order_is_the_file_s() -> None:
    a, b = service("a"), service("b", vips=(VIP2,))
    after, actions = reload(start(a, b, up=True), b, a)
    assert [s.id.service for s in after.desired.services] == ["b", "a"]
    assert Retarget() not in actions


def test_health_stays_with_the_check_of_the_same_name_and_type() -> None:
    state, _ = feed(start(service(reals=3), up=True), *[bad(0)] * 3, bad(1), bad(1))
    other = replace(TCP, interval_s=9.0, port=8080, fall=9)
    after, actions = reload(state, service(reals=3, checks=(other,)))
    assert weights(after) == [None, 1, 1]
    assert after.services[KNOWN[0]].statuses[1].health is HealthState.FALLING
    assert after.desired is state.desired
    assert actions == [Retarget(), Pace(backend(1), other, True)]
    assert [check for _, check in after.targets()] == [other] * 3


def test_a_result_of_the_check_as_it_was_counts_no_more() -> None:
    state = start(service(checks=(WEB,)), up=True)
    after, _ = reload(state, service(checks=(replace(WEB, port=81),)))
    assert falls(after, 0) is after


def test_what_is_up_stays_up_under_m_of_n() -> None:
    lossy = replace(WEB, quorum=(1, 3))
    after, _ = reload(start(service(checks=(WEB,)), up={0}), service(checks=(lossy,)))
    assert weights(after) == [1, None]
    after, _ = feed(after, bad(0, lossy), bad(0, lossy))
    assert weights(after) == [1, None]
    after, _ = feed(after, bad(0, lossy))
    assert weights(after) == [None, None]


def test_a_new_check_begins_as_the_backend_is() -> None:
    state = start(service(checks=(TCP,)), up={0})
    after, actions = reload(state, service(checks=(TCP, WEB)))
    assert weights(after) == [1, None]
    assert actions == [Retarget()]
    assert weights(falls(after, 0)) == [None, None]
    assert weights(feed(after, good(1), good(1))[0]) == [1, None]


def test_without_the_check_that_failed_a_backend_is_up() -> None:
    state = falls(start(service(reals=1, checks=(TCP, WEB)), up=True), 0)
    after, actions = reload(state, service(reals=1, checks=(TCP,)), now=7.0)
    assert weights(after) == [1]
    assert actions == [
        Transition("backend", str(backend(0)), "up", "the check that failed is gone", 6.0),
        Transition("service", f"web@{VIP1}", "healthy", "1 of 1 can serve, 1 needed", 6.0),
        Transition("vip", str(VIP1), "announced", "by the health of its services", 6.0),
        Install(after.desired),
        Retarget(),
    ]
    assert after.services[KNOWN[0]].statuses[0].since == 7.0


def test_how_a_service_treats_packets_may_change() -> None:
    changed = service(scheduling=Scheduling.STICKY, unknown=Unknown.PASS)
    after, actions = reload(start(service(), up=True), changed)
    (only,) = after.desired.services
    assert (only.scheduling, only.unknown) == (Scheduling.STICKY, Unknown.PASS)
    assert actions == [Install(after.desired)]


def test_a_new_real_begins_down_and_one_that_is_gone_is_gone() -> None:
    state = start(service(reals=2), up=True)
    after, actions = reload(state, service(reals=(real(1), real(2))))
    assert ups(after) == {backend(1): True, backend(2): False}
    assert actions == [Install(after.desired), Retarget()]
    back, _ = reload(after, service(reals=2))
    assert ups(back) == {backend(0): False, backend(1): True}


def test_changed_reals_are_installed_with_the_health_they_have() -> None:
    state = start(service(reals=4), up={0, 1, 2})
    reals = (
        real(0, weight=5),
        real(1, tier=1),
        real(2, admin=AdminState.DISABLED),
        real(3, forwarding=Forwarding(ForwardMode.IPIP)),
    )
    after, actions = reload(state, service(reals=reals))
    assert weights(after) == [5, 0, None, None]
    assert after.desired.services[0].backends[3].forwarding.mode is ForwardMode.IPIP
    assert actions == [Install(after.desired)]


def test_a_new_vip_is_announced_once_its_services_are_healthy_and_learn_does_not_begin_anew() -> None:
    state = start(service(checks=(WEB,)), up=True, learn_s=60.0)
    after, actions = reload(state, service(checks=(WEB,), vips=(VIP1, VIP2)), learn_s=60.0)
    assert after.desired.announce == {VIP1}
    assert actions == [Install(after.desired), Retarget()]
    after, actions = feed(after, good(0, WEB, vip=VIP2), now=5.0)
    assert after.desired.announce == {VIP1, VIP2}
    assert said(actions, "vip") == [("announced", 3.0)]


def test_a_reload_does_not_cut_learning_short_either() -> None:
    state = start(service(checks=()), learn_s=60.0)
    after, _ = reload(state, service(checks=(), vips=(VIP1, VIP2)), learn_s=0.0)
    assert after.desired.announce == frozenset()
    assert tick(after, 60.0).desired.announce == {VIP1, VIP2}


def test_a_vip_without_services_is_withdrawn() -> None:
    state = start(service("a"), service("b", vips=(VIP2,)), up=True, now=1.0)
    after, actions = reload(state, service("a"), now=5.0)
    assert after.desired.announce == {VIP1}
    assert actions == [
        Transition("vip", str(VIP2), "withdrawn", "no service is on it any more", 4.0),
        Install(after.desired),
        Retarget(),
    ]
    again, actions = reload(after, service("a"), service("b", vips=(VIP2,), checks=()), now=6.0)
    assert again.desired.announce == {VIP1, VIP2}
    assert said(actions, "vip") == [("announced", None)]


def test_an_unhealthy_newcomer_withdraws_the_vip() -> None:
    after, _ = reload(start(service("a"), up=True), service("a"), service("b"))
    assert after.desired.announce == frozenset()


def test_a_service_that_needs_more_says_that_it_is_unhealthy() -> None:
    state = falls(start(service(checks=(WEB,)), up=True), 0)
    after, actions = reload(state, service(checks=(WEB,), need=2), now=9.0)
    assert said(actions, "service") == [("unhealthy", 9.0)]
    assert after.desired.announce == frozenset()


def test_what_was_said_at_run_time_stays_said_even_of_reals_that_come_and_go() -> None:
    state, _ = feed(
        start(service(), up=True), admin(0, AdminState.DRAINING), WeightChanged(REALS[1].address, "web", 7)
    )
    assert weights(state) == [0, 7]
    without, _ = reload(state, service(reals=(real(2),)))
    back, _ = reload(without, service(checks=()))
    assert weights(back) == [0, 7]
    state, _ = feed(without, admin(0, None))
    assert weights(reload(state, service(checks=()))[0]) == [1, 7]


def test_a_new_real_begins_slowly() -> None:
    state = start(service(checks=(WEB,), slow_start_s=70.0), up=True)
    after, _ = reload(state, service(reals=3, checks=(WEB,), slow_start_s=70.0), now=50.0)
    assert weights(rises(after, 2, now=60.0)) == [8, 8, 1]


FLAPS = Damping(suppress=2.0)


@pytest.mark.parametrize(
    ("damping", "outcome"), [(FLAPS, [0, 1]), (Damping(suppress=9.0), [0, 1]), (None, [1, 1])]
)
def test_who_is_kept_out_stays_so_unless_damping_is_off(damping: Damping | None, outcome: list[int]) -> None:
    state = start(service(checks=(WEB,), damping=FLAPS), up=True)
    state, _ = feed(state, *[bad(0, WEB), good(0, WEB)] * 2)
    assert weights(state) == [0, 1]
    after, actions = reload(state, service(checks=(WEB,), damping=damping), now=3.0)
    assert weights(after) == outcome
    assert said(actions, "damping") == ([] if damping else [("released", 2.0)])


def test_a_real_may_become_a_sorry_real() -> None:
    state = start(service(reals=2, checks=(WEB,)), up=True)
    after, _ = reload(state, service(reals=1, checks=(WEB,), sorry=Sorry((real(1),), (WEB,))))
    assert weights(after) == [1, 0]
    assert weights(falls(after, 0)) == [None, 1]


def test_a_real_of_the_service_is_no_sorry_real_beside_that() -> None:
    state = start(service(reals=1, checks=(WEB,), sorry=Sorry((real(0), real(1)), (TCP,))), up=True)
    assert list(state.targets()) == [(backend(0), WEB), (backend(1), TCP)]


def test_checks_of_one_name_keep_each_what_it_knows() -> None:
    first, second = (Check("http", CheckType.HTTP, 80, HttpRequest(path)) for path in ("/a", "/b"))
    one = backends.new(BackendId("web", VIP1, real(0).address), real(0), (first, second), sorry=False,
                       adopted=True, wanted=(AdminState.ENABLED, 1), now=0.0)  # fmt: skip
    falling, _, _ = backends.probed(one, second, False, "refused", None, 1.0)
    for checks in ((second,), (second, first)):
        after = backends.reconfigured(falling, falling.real, checks, sorry=False, policy=None, now=2.0)
        assert after.healths == (falling.healths[1], falling.healths[0])[: len(checks)]
