"""When a VIP is announced: by policy, and by what people say."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.unit.directing import VIP1, VIP2, WEB, admin, falls, feed, good, rises, service, start, tick
from vc5py.core import director
from vc5py.core.admin import NO_OVERRIDES, from_json, to_json
from vc5py.core.director import (
    CutOff,
    Reloaded,
    RouterBack,
    RoutersLost,
    State,
    Transition,
    VipChanged,
)
from vc5py.model import AdminState, Config, IPAddress, VipPolicy, VipState

A, B = (service(name, checks=(WEB,)) for name in ("a", "b"))
OTHER = service("c", vips=(VIP2,), checks=(WEB,))


def begun(config: Config) -> State:
    return director.start(config, lambda _: False, 0.0)


def announced(state: State) -> frozenset[IPAddress]:
    return state.desired.announce


@pytest.mark.parametrize(
    ("config", "any_will_do"),
    [
        (Config((A, B)), False),
        (Config((A, B), vip_policy=VipPolicy.ANY), True),
        (Config((A, B), vip_policies=((VIP1, VipPolicy.ANY),)), True),
        (Config((A, B), vip_policies=((VIP2, VipPolicy.ANY),)), False),
        (Config((A, B), vip_policy=VipPolicy.ANY, vip_policies=((VIP1, VipPolicy.ALL),)), False),
    ],
)
def test_policy_says_whether_all_services_must_serve_or_any(config: Config, any_will_do: bool) -> None:
    state = begun(config)
    assert not announced(state), "none serves"
    state = rises(state, 0, name="a")
    assert (VIP1 in announced(state)) is any_will_do
    state = rises(state, 0, name="b")
    assert VIP1 in announced(state)
    state = falls(state, 0, name="a")
    assert (VIP1 in announced(state)) is any_will_do
    assert not announced(falls(state, 0, name="b"))


def test_policy_of_a_reload_counts_at_once() -> None:
    state = rises(begun(Config((A, B))), 0, name="a")
    state, _ = feed(state, Reloaded(Config((A, B), vip_policy=VipPolicy.ANY)))
    assert announced(state) == {VIP1}


def test_withdrawn_by_command_until_it_is_left_to_health_again() -> None:
    state = rises(start(A, OTHER), 0, name="a")
    state, actions = feed(state, VipChanged(VIP1, VipState.WITHDRAWN), now=5.0)
    assert not announced(state)
    transitions = [action for action in actions if isinstance(action, Transition)]
    assert [(t.what, t.name, t.state, t.why) for t in transitions] == [
        ("vip", str(VIP1), "wanted=withdrawn", "said at run time"),
        ("vip", str(VIP1), "withdrawn", "said at run time"),
    ]
    state = rises(falls(state, 0, name="a"), 0, name="a")
    assert not announced(state), "health changes nothing of it"
    state, _ = feed(state, Reloaded(Config((A, B, OTHER))), Reloaded(Config((A, OTHER))))
    assert not announced(state), "nor does a reload"
    assert announced(feed(state, VipChanged(VIP1, None))[0]) == {VIP1}


def test_announced_by_command_only_while_something_can_serve() -> None:
    state, _ = feed(start(A, B), VipChanged(VIP1, VipState.ANNOUNCED))
    assert not announced(state)
    state = rises(state, 0, name="a")
    assert announced(state) == {VIP1}, "though b doesn't serve"
    assert not announced(falls(state, 0, name="a"))


def test_announced_by_command_does_not_cut_learning_short() -> None:
    state = rises(start(A, learn_s=10.0), 0, name="a")
    state, _ = feed(state, VipChanged(VIP1, VipState.ANNOUNCED), now=2.0)
    assert not announced(state)
    assert announced(tick(state, 10.0)) == {VIP1}


def test_log_names_the_services_that_have_nobody_left() -> None:
    row = [service(name, checks=(WEB,), vips=(VIP1,), ports=(n,)) for n, name in enumerate("abcde")]
    state = start(*row, OTHER, up=True)
    state, actions = feed(state, admin(0, AdminState.DRAINING, "a"), admin(1, AdminState.DRAINING, "a"))
    (change,) = [a for a in actions if isinstance(a, Transition) and a.what == "vip"]
    assert (change.name, change.state, change.why) == (str(VIP1), "withdrawn", "nobody can serve a")
    _, actions = feed(start(*row, up=True), Reloaded(Config(tuple([replace(s, need=3) for s in row]))))
    (change,) = [a for a in actions if isinstance(a, Transition) and a.what == "vip"]
    assert change.why == "too few can serve a, b, c and 2 more"


def why(state: State, now: float) -> dict[IPAddress, str]:
    return state.why_withdrawn((VIP1, VIP2), now)


def test_why_a_vip_is_not_announced() -> None:
    state = start(A, B, OTHER, learn_s=10.0)
    assert why(state, 1.0) == {VIP1: "nobody can serve a and b", VIP2: "nobody can serve c"}
    state = rises(rises(state, 0, name="a"), 0, name="b")
    assert why(state, 1.5) == {
        VIP1: "learns which flows there are, 9 s left",
        VIP2: "nobody can serve c",
    }
    state = tick(state, 10.0)
    assert why(state, 10.0) == {VIP2: "nobody can serve c"}
    assert state.why_withdrawn((IPv4Address("203.0.113.9"),), 10.0) == {}, "of no VIP there is nothing to say"
    cut, _ = feed(state, CutOff(), now=20.0)
    assert why(cut, 20.0)[VIP1] == "cut off: listens to the other balancers first, 10 s left"
    held, _ = feed(state, RoutersLost(), now=20.0)
    assert why(held, 21.0)[VIP1] == (
        "no BGP session; when one is back, it waits for the other balancers' flows first"
    )
    held, _ = feed(held, RouterBack(), now=25.0)
    assert why(held, 26.5)[VIP1] == (
        "BGP is back after a while without: waits for the other balancers' flows, 9 s left at most"
    )
    told, _ = feed(held, VipChanged(VIP1, VipState.WITHDRAWN), now=27.0)
    assert why(told, 27.0)[VIP1] == "withdrawn by command"


def test_being_cut_off_is_still_the_reason_after_a_reload() -> None:
    state, _ = feed(rises(start(A, learn_s=10.0), 0, name="a"), CutOff(), now=5.0)
    state, _ = feed(state, Reloaded(Config((A, OTHER), learn_s=10.0)), now=6.0)
    assert why(state, 6.0)[VIP1] == "cut off: listens to the other balancers first, 9 s left"


def test_saying_it_again_is_no_news() -> None:
    state, _ = feed(start(A), VipChanged(VIP1, VipState.WITHDRAWN))
    assert feed(state, VipChanged(VIP1, VipState.WITHDRAWN)) == (state, [])


def test_command_on_a_vip_that_is_not_there_is_kept_for_when_it_comes() -> None:
    state, _ = feed(start(A), VipChanged(VIP2, VipState.WITHDRAWN))
    state, _ = feed(state, Reloaded(Config((A, OTHER))))
    state = rises(state, 0, name="a")
    state, _ = feed(state, good(0, WEB, name="c", vip=VIP2))
    assert announced(state) == {VIP1}


def test_commands_are_remembered() -> None:
    said = NO_OVERRIDES.with_vip(VIP1, VipState.WITHDRAWN).with_vip(VIP2, VipState.ANNOUNCED)
    assert from_json(to_json(said)) == said
    assert from_json({"reals": []}) == NO_OVERRIDES, "a file from before there were commands on VIPs"
    assert said.with_vip(VIP1, None).with_vip(VIP2, None) == NO_OVERRIDES


@pytest.mark.parametrize(
    ("vips", "message"),
    [
        ({}, "vips: expected a list"),
        ([{"vip": "192.0.2.1"}], "vips, entry 1: expected a vip"),
        ([{"vip": "192.0.2.1", "state": "up"}], "vips, entry 1: expected a vip"),
        ([{"vip": "192.0.2", "state": "withdrawn"}], "vips, entry 1: '192.0.2' is not an address"),
        ([{"vip": "192.0.2.1", "state": "withdrawn"}] * 2, "vips, entry 2: a second one for 192.0.2.1"),
    ],
)
def test_what_was_not_saved_by_us_is_refused(vips: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json({"reals": [], "vips": vips})
