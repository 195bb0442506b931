"""Within one service: who serves, by what people say, tiers, need, sorry reals, flapping and slow start."""

from __future__ import annotations

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
    weights,
)
from vc5py.core.admin import NO_OVERRIDES
from vc5py.core.director import Action, Install, State, Tick, Transition, VirtualService, WeightChanged
from vc5py.core.selection import Condition
from vc5py.model import (
    AdminState,
    BelowNeed,
    Check,
    CheckType,
    Damping,
    Service,
    Sorry,
    Standby,
    VirtualServiceId,
)

ENABLED, DRAINING, DISABLED = AdminState.ENABLED, AdminState.DRAINING, AdminState.DISABLED


def web(state: State) -> VirtualService:
    return state.services[VirtualServiceId("web", VIP1)]


def announced(state: State) -> bool:
    return VIP1 in state.desired.announce


# What people say


def test_draining_takes_no_new_flows_and_disabled_no_packets() -> None:
    reals = (real(0), real(1, admin=DRAINING), real(2, admin=DISABLED))
    assert weights(start(service(reals=reals), up=True)) == [1, 0, None]


def test_at_run_time_and_back() -> None:
    state = start(service(reals=3, checks=(WEB,)), up=True)
    state, actions = feed(state, admin(0, DRAINING), admin(1, DISABLED))
    assert weights(state) == [0, None, 1]
    assert [a for a in actions if isinstance(a, Transition)] == [
        Transition("real", "10.0.0.1", "draining", "said at run time"),
        Transition("real", "10.0.0.2", "disabled", "said at run time"),
    ]
    assert actions[-1] == Install(state.desired)
    state, actions = feed(state, admin(0, None), admin(1, None))
    assert weights(state) == [1, 1, 1]
    assert said(actions, "real") == [("file", None)] * 2
    assert state.overrides == NO_OVERRIDES


def test_saying_the_same_again_does_nothing() -> None:
    state, _ = feed(start(service(), up=True), admin(0, DRAINING))
    same, actions = feed(state, admin(0, DRAINING))
    assert same is state
    assert actions == []


def test_in_one_service_or_in_all() -> None:
    services = service("web", checks=(WEB,)), service("mail", vips=(VIP2,), checks=(WEB,))
    state, actions = feed(start(*services, up=True), admin(0, DRAINING, "mail"))
    assert said(actions, "real") == [("draining", None)]
    assert (weights(state), feed_weights(state)) == ([1, 1], [0, 1])
    state, _ = feed(state, admin(0, DISABLED))
    assert (weights(state), feed_weights(state)) == ([None, 1], [0, 1])


def feed_weights(state: State) -> list[int | None]:
    (mail,) = [s for s in state.desired.services if s.id.service == "mail"]
    return [b.weight if b.up else None for b in mail.backends]


def test_weight_at_run_time_and_back() -> None:
    state, actions = feed(start(service(), up=True), WeightChanged(REALS[1].address, None, 7))
    assert weights(state) == [1, 7]
    assert said(actions, "real") == [("weight=7", None)]
    state, actions = feed(state, WeightChanged(REALS[1].address, None, None))
    assert weights(state) == [1, 1]
    assert said(actions, "real") == [("weight=file", None)]


def test_what_was_said_counts_from_the_start_on() -> None:
    overrides = NO_OVERRIDES.with_state(REALS[0].address, None, DRAINING).with_weight(
        REALS[1].address, "web", 9
    )
    assert weights(start(service(), up=True, overrides=overrides)) == [0, 9]


def test_a_real_nobody_knows_is_remembered_and_changes_nothing() -> None:
    state = start(service(), up=True)
    after, actions = feed(state, admin(8, DISABLED))
    assert after.desired is state.desired
    assert [type(action) for action in actions] == [Transition]
    assert after.overrides.state_of("web", REALS[8]) is DISABLED


def test_a_disabled_real_goes_on_being_probed() -> None:
    state = start(service(checks=(WEB,)), up=True)
    disabled, _ = feed(state, admin(0, DISABLED))
    assert list(disabled.targets()) == list(state.targets())
    state, actions = feed(falls(disabled, 0), admin(0, None))
    assert weights(state) == [None, 1]
    assert Install not in [type(action) for action in actions]
    assert weights(rises(state, 0)) == [1, 1]


def test_an_unhealthy_draining_real_has_no_packets() -> None:
    state, _ = feed(start(service(checks=(WEB,)), up=True), admin(0, DRAINING), bad(0, WEB))
    assert weights(state) == [None, 1]


@pytest.mark.parametrize(
    "how", [admin(0, DRAINING), admin(0, DISABLED), WeightChanged(REALS[0].address, None, 0)]
)
def test_who_takes_no_new_flows_does_not_count_towards_need(how: object) -> None:
    state, actions = feed(start(service(need=2), up=True), how, now=6.0)  # type: ignore[arg-type]
    assert not announced(state)
    assert said(actions, "service") == [("unhealthy", 6.0)]


def test_a_service_whose_reals_all_have_weight_0_is_not_announced() -> None:
    state = start(service(reals=(real(0, weight=0), real(1, weight=0))), up=True)
    assert weights(state) == [0, 0]
    assert not announced(state)


# Tiers


def tiered(min_up: int, standby: Standby, tiers: str = "00112", **more: Any) -> Service:
    reals = tuple(real(n, tier=int(tier)) for n, tier in enumerate(tiers))
    return service(reals=reals, checks=(WEB,), min_up=min_up, standby=standby, **more)


REPLACE_1 = {
    (0, 1, 2, 3, 4): [1, 1, 0, 0, 0],
    (1, 2, 3, 4): [None, 1, 0, 0, 0],
    (2, 3, 4): [None, None, 1, 1, 0],
    (3,): [None, None, None, 1, None],
    (4,): [None, None, None, None, 1],
    (0, 4): [1, None, None, None, 0],
    (): [None] * 5,
}
REPLACE_2 = {
    (0, 1, 2, 3, 4): [1, 1, 0, 0, 0],
    (1, 2, 3, 4): [None, 0, 1, 1, 0],
    (1, 2, 4): [None, 1, 1, None, 1],
    (4,): [None, None, None, None, 1],
}
JOIN_1 = REPLACE_1
JOIN_2 = {
    (0, 1, 2, 3, 4): [1, 1, 0, 0, 0],
    (1, 2, 3, 4): [None, 1, 1, 1, 0],
    (1, 2, 4): [None, 1, 1, None, 0],
    (3, 4): [None, None, None, 1, 1],
    (0, 4): [1, None, None, None, 1],
    (1,): [None, 1, None, None, None],
}


@pytest.mark.parametrize(
    ("min_up", "standby", "up", "outcome"),
    [
        (min_up, standby, up, outcome)
        for min_up, standby, table in [
            (1, Standby.REPLACE, REPLACE_1),
            (2, Standby.REPLACE, REPLACE_2),
            (1, Standby.JOIN, JOIN_1),
            (2, Standby.JOIN, JOIN_2),
        ]
        for up, outcome in table.items()
    ],
)
def test_tiers(min_up: int, standby: Standby, up: tuple[int, ...], outcome: list[int | None]) -> None:
    state = rises(start(tiered(min_up, standby)), *up)
    assert weights(state) == outcome
    assert announced(state) == bool(up)


def test_the_standby_takes_over_and_keeps_its_flows_when_the_primary_is_back() -> None:
    state = start(tiered(1, Standby.REPLACE, "01"), up=True)
    state, actions = feed(state, bad(0, WEB), now=5.0)
    assert weights(state) == [None, 1]
    assert said(actions, "tier") == [("1", 5.0)]
    state, actions = feed(state, good(0, WEB), now=9.0)
    assert weights(state) == [1, 0]
    assert said(actions, "tier") == [("0", 4.0)]
    assert announced(state)


def test_a_tier_that_drains_gives_way() -> None:
    state, _ = feed(start(tiered(1, Standby.REPLACE, "01"), up=True), admin(0, DRAINING))
    assert weights(state) == [0, 1]


def test_need_counts_the_healthy_of_all_tiers() -> None:
    state = start(tiered(1, Standby.REPLACE, "011", need=2), up=True)
    assert announced(falls(state, 1))
    assert not announced(falls(state, 1, 2))


def test_without_tiers_none_are_logged() -> None:
    _, actions = feed(start(service(checks=(WEB,)), up=True), bad(0, WEB), bad(1, WEB), good(1, WEB))
    assert said(actions, "tier") == []


# need, and what is below it


def test_below_need_the_vip_is_withdrawn_and_what_is_left_serves_who_still_comes() -> None:
    state = falls(start(service(reals=3, need=2, checks=(WEB,)), up=True), 0, 1)
    assert weights(state) == [None, None, 1]
    assert not announced(state)
    assert not web(state).healthy


def test_below_need_it_may_go_on_with_what_is_left_but_never_with_nothing() -> None:
    state = start(service(need=2, checks=(WEB,), below_need=BelowNeed.SERVE), up=True)
    state, actions = feed(state, bad(0, WEB), now=2.0)
    assert said(actions, "service") == [("below-need", 2.0)]
    assert (announced(state), web(state).healthy, web(state).condition) == (True, False, Condition.BELOW_NEED)
    state, actions = feed(state, bad(1, WEB), now=3.0)
    assert said(actions, "service") == [("unhealthy", 1.0)]
    assert not announced(state)


ASK = Check("sorry check", CheckType.TCP, 81, rise=1, fall=1)


def sorry(**more: Any) -> Service:
    reals = (real(5, weight=3), real(6, weight=2))
    return service(reals=3, need=2, checks=(WEB,), sorry=Sorry(reals, (ASK,)), **more)


def test_sorry_reals_have_checks_of_their_own_and_stand_by() -> None:
    state = start(sorry())
    targets = {(target.real, check) for target, check in state.targets()}
    assert targets == {(r.address, WEB) for r in REALS[:3]} | {(r.address, ASK) for r in REALS[5:7]}
    state = start(sorry(), up=True)
    assert weights(state) == [1, 1, 1, 0, 0]
    assert [status.sorry for status in web(state).statuses] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("below_need", BelowNeed)
def test_below_need_sorry_reals_serve_and_the_others_keep_their_flows(below_need: BelowNeed) -> None:
    state = start(sorry(below_need=below_need), up=True)
    state, actions = feed(state, bad(0, WEB), bad(1, WEB), now=4.0)
    assert weights(state) == [None, None, 0, 3, 2]
    assert said(actions, "service") == [("sorry", 4.0)]
    assert (announced(state), web(state).healthy, web(state).condition) == (True, False, Condition.SORRY)
    state, actions = feed(state, good(0, WEB), now=5.0)
    assert weights(state) == [1, None, 1, 0, 0]
    assert said(actions, "service") == [("healthy", 1.0)]


@pytest.mark.parametrize("below_need", BelowNeed)
def test_without_a_healthy_sorry_real_it_is_as_if_there_were_none(below_need: BelowNeed) -> None:
    state = falls(start(sorry(below_need=below_need), up=True), 0, 1)
    state, _ = feed(state, bad(5, ASK), bad(6, ASK))
    assert weights(state) == [None, None, 1, None, None]
    assert announced(state) == (below_need is BelowNeed.SERVE)


def test_sorry_reals_do_not_count_towards_need() -> None:
    state = falls(start(sorry(), up=True), 0, 1, 2)
    assert weights(state) == [None, None, None, 3, 2]
    assert (web(state).up_count, announced(state)) == (0, True)


def test_people_decide_over_sorry_reals_too() -> None:
    state, _ = feed(falls(start(sorry(), up=True), 0, 1), admin(5, DRAINING), admin(6, DISABLED))
    assert weights(state) == [None, None, 1, 0, None]


# Flapping

FLAPS = Damping(suppress=3.0, reuse=1.0, half_life_s=60.0, longest_s=600.0)


def flap(state: State, n: int, now: float, times: int = 3) -> tuple[State, list[Action]]:
    """Goes down and comes back at once, so many times."""
    state, actions = feed(state, *[bad(n, WEB), good(n, WEB)] * times, now=now)
    return state, actions


def flapping(**more: Any) -> State:
    return start(service(reals=3, checks=(WEB,), damping=FLAPS, **more), up=True)


def test_a_real_that_flaps_is_kept_out_until_its_points_have_fallen() -> None:
    state, _ = flap(flapping(), 0, 10.0, times=2)
    assert weights(state) == [1, 1, 1]
    state, actions = flap(state, 0, 10.0, times=1)
    assert weights(state) == [0, 1, 1]
    (told,) = [a for a in actions if isinstance(a, Transition) and a.what == "damping"]
    assert told.name == f"web@{VIP1}/10.0.0.1"
    assert (told.state, told.why, told.after_s) == ("kept-out", "went down too often: 3.0 points", None)
    assert web(state).statuses[0].damped
    until = 10.0 + 60.0 * 1.585
    assert tick(state, until - 0.1) is state
    state, ended = feed(state, Tick(), now=until)
    assert weights(state) == [1, 1, 1]
    ((told_end, after_s),) = said(ended, "damping")
    assert told_end == "released"
    assert after_s == pytest.approx(until - 10.0)
    assert not web(state).statuses[0].damped


def test_one_that_flaps_is_used_where_there_would_be_too_few_without_it() -> None:
    state, _ = flap(flapping(need=2), 0, 10.0)
    assert weights(state) == [0, 1, 1]
    state, actions = feed(state, bad(1, WEB), now=12.0)
    assert weights(state) == [1, None, 1]
    assert said(actions, "damping") == [("used", 2.0)]
    assert announced(state)
    state, actions = feed(state, good(1, WEB), now=15.0)
    assert weights(state) == [0, 1, 1]
    assert said(actions, "damping") == [("kept-out", 3.0)]


def test_min_up_is_as_good_a_reason_as_need() -> None:
    state, _ = flap(flapping(min_up=3), 0, 10.0)
    assert weights(state) == [1, 1, 1]


def test_no_more_of_those_that_flap_are_used_than_it_takes_those_with_less_points_first() -> None:
    state, _ = flap(flapping(need=2), 0, 10.0, times=4)
    state, _ = flap(state, 1, 10.0, times=3)
    assert weights(state) == [0, 1, 1]
    state, _ = flap(state, 2, 10.0, times=5)
    assert weights(state) == [1, 1, 0]


def test_one_that_is_used_all_the_same_and_goes_down_again_is_not_told_each_time() -> None:
    _, actions = flap(flapping(need=3), 0, 10.0, times=6)
    assert said(actions, "damping") == [("kept-out", None), ("used", 0.0)]


def test_one_that_flaps_does_not_hold_up_its_tier_while_a_standby_is_there() -> None:
    state = start(tiered(1, Standby.REPLACE, "01", damping=FLAPS), up=True)
    state, _ = flap(state, 0, 10.0)
    assert weights(state) == [0, 1]
    state, _ = feed(state, bad(1, WEB), now=11.0)
    assert weights(state) == [1, None]


def test_what_people_do_costs_no_points() -> None:
    state, _ = feed(flapping(), *[admin(0, DISABLED), admin(0, None)] * 9)
    assert weights(state) == [1, 1, 1]


def test_sorry_reals_may_flap() -> None:
    state = start(sorry(damping=FLAPS), up=True)
    state, _ = feed(falls(state, 0, 1, 2), *[bad(5, ASK), good(5, ASK)] * 9)
    assert weights(state) == [None, None, None, 3, 2]


# Slow start


def slow(**more: Any) -> Service:
    return service(reals=3, checks=(WEB,), slow_start_s=70.0, **more)


def history(state: State, since: int, until: int) -> tuple[State, list[list[int | None]]]:
    """The distinct weights, looked at every second."""
    rows = [weights(state)]
    for now in range(since, until):
        state = tick(state, float(now))
        if weights(state) != rows[-1]:
            rows.append(weights(state))
    return state, rows


def test_after_recovery_the_share_grows_in_a_few_steps_to_exactly_its_weight() -> None:
    state = falls(start(slow(), up=True), 0, now=5.0)
    state = rises(state, 0, now=100.0)
    assert weights(state) == [1, 8, 8]
    state, rows = history(state, 101, 200)
    assert rows == [[1, 8, 8], [1, 4, 4], [3, 8, 8], [1, 2, 2], [5, 8, 8], [3, 4, 4], [7, 8, 8], [1, 1, 1]]
    assert tick(state, 1e6) is state


def test_of_several_that_recover_each_step_changes_the_table_once() -> None:
    state = falls(start(slow(), up=True), 0, 1, now=5.0)
    state = rises(rises(state, 0, now=101.0), 1, now=108.0)
    assert weights(state) == [1, 1, 8]
    _, rows = history(state, 109, 300)
    assert len(rows) == 8
    assert all(row[0] == row[1] for row in rows)


def test_nothing_ramps_where_all_begin_together_or_nobody_else_serves() -> None:
    state = rises(start(slow()), 0, 1, 2, now=1.0)
    assert history(state, 2, 100)[1] == [[1, 1, 1]]
    state = rises(start(slow()), 1, now=1.0)
    assert history(state, 2, 100)[1] == [[None, 1, None]]


def test_what_was_adopted_does_not_ramp() -> None:
    assert history(start(slow(), up=True), 0, 100)[1] == [[1, 1, 1]]


def test_the_shown_weight_is_before_scaling() -> None:
    reals = (real(0, weight=10), real(1, weight=11), real(2, weight=10))
    one = service(reals=reals, checks=(WEB,), slow_start_s=70.0)
    state = rises(falls(start(one, up=True), 0, now=5.0), 0, now=100.0)
    assert weights(state) == [5, 44, 40]
    assert [status.weight for status in web(state).statuses] == [1, 11, 10]


def test_one_that_was_disabled_begins_slowly_but_not_one_that_drained() -> None:
    state = start(slow(), up=True)
    disabled, _ = feed(state, admin(0, DISABLED), admin(0, None), now=50.0)
    assert weights(disabled) == [1, 8, 8]
    drained, _ = feed(state, admin(0, DRAINING), admin(0, None), now=50.0)
    assert weights(drained) == [1, 1, 1]


def test_one_that_was_kept_out_begins_slowly() -> None:
    state, _ = flap(start(slow(damping=FLAPS), up=True), 0, 10.0)
    state = tick(state, 110.0)
    assert weights(state) == [1, 8, 8]


def test_a_down_real_neither_ramps_nor_wakes_anybody() -> None:
    state = falls(rises(falls(start(slow(), up=True), 0, now=5.0), 0, now=100.0), 0, now=105.0)
    assert weights(state) == [None, 1, 1]
    assert not state.wakes


# What else is told


def test_tiers_that_serve_together_are_told_together() -> None:
    state, actions = feed(start(tiered(2, Standby.JOIN), up=True), bad(0, WEB), now=5.0)
    assert said(actions, "tier") == [("0+1", 5.0)]
    state, actions = feed(state, bad(1, WEB), bad(2, WEB), bad(3, WEB), bad(4, WEB), now=6.0)
    assert said(actions, "tier") == [("1", 1.0), ("1+2", 0.0), ("2", 0.0), ("none", 0.0)]


def test_why_a_backend_is_as_it_began() -> None:
    assert web(start(service())).statuses[0].why == "not probed yet"
    assert web(start(service(checks=()))).statuses[0].why == "no checks"
    assert web(start(service(), up=True)).statuses[0].why == "up before this start"


def test_first_failure_of_a_real_that_never_was_up_is_told_once() -> None:
    state, actions = feed(start(service(checks=(TCP,)), now=3.0), bad(1, TCP), now=5.0)
    assert actions == [Transition("backend", str(backend(1)), "down", "tcp check: refused", 2.0)]
    first, second = web(state).statuses
    assert (first.why, second.why, second.since) == ("not probed yet", "tcp check: refused", 3.0)
    again, actions = feed(state, bad(1, TCP), now=6.0)
    assert (again, actions) == (state, []) and again is state
    _, actions = feed(state, good(1, TCP), bad(1, TCP), bad(1, TCP), now=7.0)
    assert not said(actions, "backend"), "nor when it began to come up, and did not"


def test_first_failure_of_one_check_counts_while_another_is_still_unknown() -> None:
    state, actions = feed(start(service(reals=1, checks=(TCP, WEB))), good(0, WEB), bad(0, WEB), bad(0, TCP))
    assert [a.why for a in actions if isinstance(a, Transition)] == ["web check: refused"]
    assert web(state).statuses[0].why == "web check: refused"


def test_what_was_up_before_the_start_is_up_for_a_reason_of_its_own_after_a_probe() -> None:
    state, actions = feed(start(service(checks=(TCP,)), up=True), good(0, TCP))
    assert actions == []
    assert [status.why for status in web(state).statuses] == ["tcp check: ok", "up before this start"]
    assert feed(state, good(0, TCP), now=9.0)[0] is state
    state, actions = feed(start(service(checks=(TCP,)), up=True), bad(0, TCP), good(0, TCP))
    assert not said(actions, "backend")
    assert web(state).statuses[0].why == "tcp check: ok"


def test_failures_are_those_of_checks_that_keep_the_real_down() -> None:
    state, _ = feed(start(service(reals=1, checks=(TCP, WEB))), good(0, WEB), bad(0, TCP))
    down = state.backend(backend(0))
    assert down is not None and down.fails(TCP) and not down.fails(WEB)
    assert not down.fails(Check("gone", CheckType.TCP, 80))
    assert state.backend(backend(7)) is None and state.backend(backend(0, name="gone")) is None


def test_count_names_what_keeps_each_real_from_serving() -> None:
    state = start(service(reals=3, need=2, checks=(WEB,)), up={0, 1})
    assert web(state).count == "2 of 3 can serve, 1 down, 2 needed"
    state, actions = feed(state, admin(0, DRAINING), now=4.0)
    (change,) = [a for a in actions if isinstance(a, Transition) and a.what == "service"]
    assert change.why == web(state).count == "1 of 3 can serve, 1 draining, 1 down, 2 needed"
    state, _ = feed(state, admin(2, DISABLED), WeightChanged(REALS[1].address, None, 0))
    assert web(state).count == "0 of 3 can serve, 1 disabled, 1 draining, 1 of weight 0, 2 needed"


def test_count_has_the_damped_and_leaves_sorry_reals_out() -> None:
    policy = Damping(suppress=2.0, reuse=1.0, half_life_s=60.0)
    sorry = Sorry((real(5, admin=DISABLED),), ())
    state = start(service(reals=2, checks=(WEB,), damping=policy, sorry=sorry), up=True)
    state, _ = flap(state, 1, 20.0, times=2)
    assert web(state).count == "1 of 2 can serve, 1 damped, 1 needed"


def test_the_first_of_several_that_are_kept_out_is_released_to_the_moment() -> None:
    policy = Damping(suppress=2.0, reuse=1.0, half_life_s=60.0)
    state = start(service(reals=3, checks=(WEB,), damping=policy), up=True)
    state, _ = flap(state, 1, 20.0, times=2)
    state, _ = flap(state, 0, 30.0, times=2)
    assert dict(state.wakes) == {VirtualServiceId("web", VIP1): 80.0}
    assert weights(tick(state, 80.0)) == [0, 1, 1]
    assert weights(tick(state, 90.0)) == [1, 1, 1]
