"""Commands on reals into events: the last one wins, and says no more than it must."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py import overriding
from vc5py.control.interface import Effective, UnknownTargetError
from vc5py.core import director
from vc5py.core.director import State
from vc5py.model import (
    AdminState,
    Check,
    CheckType,
    Config,
    Protocol,
    Real,
    Service,
    Sorry,
    VirtualServiceId,
)
from vc5py.overriding import Target

VIP, VIP6 = ip_address("192.0.2.1"), ip_address("fd00::1")
A, B, SORRY = ip_address("10.0.0.1"), ip_address("10.0.0.20"), ip_address("10.0.0.99")
ENABLED, DRAINING, DISABLED = AdminState.ENABLED, AdminState.DRAINING, AdminState.DISABLED
CHECK = Check("c", CheckType.TCP, 80)
WEB = Service(
    "web",
    "",
    (VIP, VIP6),
    (80,),
    (Protocol.TCP,),
    (Real(A), Real(B, admin=DRAINING)),
    1,
    (CHECK,),
    sorry=Sorry((Real(SORRY),), (CHECK,)),
)
DNS = replace(WEB, name="dns", vips=(VIP,), ports=(53,), reals=(Real(A, weight=5),), sorry=None)


def begin(*services: Service) -> State:
    return director.start(Config(services or (WEB, DNS)), lambda _: True, 0.0)


def after(state: State, events: Iterable[director.Event]) -> State:
    for event in tuple(events):
        state, _ = director.step(state, event, 1.0)
    return state


def said(state: State) -> list[tuple[object, ...]]:
    return [(o.real, o.service, o.state, o.weight) for o in overriding.shown(state.overrides)]


def admin(state: State) -> list[str]:
    return [str(e.admin) for e in overriding.effective(state, Target(A, None))]


def test_what_is_effective_is_told_of_every_virtual_service() -> None:
    assert overriding.effective(begin(), Target(A, None)) == (
        Effective(VirtualServiceId("web", VIP), ENABLED, 1),
        Effective(VirtualServiceId("web", VIP6), ENABLED, 1),
        Effective(VirtualServiceId("dns", VIP), ENABLED, 5),
    )
    (only,) = overriding.effective(begin(), Target(A, "dns"))
    assert only.weight == 5


def test_drain_in_all_services_and_in_one() -> None:
    state = begin()
    one = after(state, overriding.set_state(state, Target(A, "dns"), DRAINING))
    assert admin(one) == ["enabled", "enabled", "draining"]
    everywhere = after(state, overriding.set_state(state, Target(A, None), DRAINING))
    assert admin(everywhere) == ["draining"] * 3


def test_command_on_all_services_takes_back_what_was_said_of_one() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(A, "dns"), DISABLED))
    state = after(state, overriding.set_weight(state, Target(A, "dns"), 9))
    state = after(state, overriding.set_state(state, Target(A, None), DRAINING))
    assert admin(state) == ["draining"] * 3
    assert said(state) == [(A, None, DRAINING, None), (A, "dns", None, 9)]
    state = after(state, overriding.set_weight(state, Target(A, None), 2))
    assert said(state) == [(A, None, DRAINING, 2)]


def test_enable_leaves_nothing_behind_where_the_file_enables() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(A, None), DISABLED))
    state = after(state, overriding.set_state(state, Target(A, None), ENABLED))
    assert (admin(state), said(state)) == (["enabled"] * 3, [])


def test_enable_stands_over_a_file_that_drains() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(B, None), ENABLED))
    assert said(state) == [(B, None, ENABLED, None)]
    assert overriding.effective(state, Target(B, "web"))[0].admin is ENABLED


def test_enable_in_one_service_stands_over_a_drain_in_all() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(A, None), DRAINING))
    state = after(state, overriding.set_state(state, Target(A, "dns"), ENABLED))
    assert admin(state) == ["draining", "draining", "enabled"]
    state = after(state, overriding.set_state(state, Target(A, "dns"), DRAINING))
    assert said(state) == [(A, None, DRAINING, None)]


def test_weight_and_its_default() -> None:
    state = begin()
    state = after(state, overriding.set_weight(state, Target(A, None), 5))
    assert [e.weight for e in overriding.effective(state, Target(A, None))] == [5, 5, 5]
    state = after(state, overriding.set_weight(state, Target(A, "web"), 0))
    assert [e.weight for e in overriding.effective(state, Target(A, None))] == [0, 0, 5]
    state = after(state, overriding.set_weight(state, Target(A, None), None))
    assert ([e.weight for e in overriding.effective(state, Target(A, None))], said(state)) == ([1, 1, 5], [])


def test_weight_default_in_one_service_is_what_was_said_of_all() -> None:
    state = begin()
    state = after(state, overriding.set_weight(state, Target(A, None), 7))
    state = after(state, overriding.set_weight(state, Target(A, "web"), 3))
    state = after(state, overriding.set_weight(state, Target(A, "web"), None))
    assert said(state) == [(A, None, None, 7)]


def test_reset_forgets_state_and_weight() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(A, "dns"), DRAINING))
    state = after(state, overriding.set_weight(state, Target(A, None), 3))
    assert said(after(state, overriding.reset(state, Target(A, "dns")))) == [(A, None, None, 3)]
    assert said(after(state, overriding.reset(state, Target(A, None)))) == []


def test_real_that_is_no_longer_configured_can_be_reset_and_nothing_else() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(B, None), DISABLED))
    state = after(state, [director.Reloaded(Config((DNS,)))])
    assert said(state) == [(B, None, DISABLED, None)]
    with pytest.raises(UnknownTargetError):
        overriding.must_exist(state, Target(B, None))
    assert said(after(state, overriding.reset(state, Target(B, None)))) == []
    with pytest.raises(UnknownTargetError):
        after(begin(DNS), overriding.reset(begin(DNS), Target(B, None)))


def test_sorry_real_can_be_commanded() -> None:
    state = begin()
    overriding.must_exist(state, Target(SORRY, "web"))
    state = after(state, overriding.set_state(state, Target(SORRY, None), DISABLED))
    assert [e.admin for e in overriding.effective(state, Target(SORRY, None))] == [DISABLED] * 2


@pytest.mark.parametrize(
    ("real", "service", "told"),
    [
        (
            "10.0.0.2",
            None,
            "no real 10.0.0.2 in the configuration; did you mean 10.0.0.20 or 10.0.0.1 or 10.0.0.99?",
        ),
        (str(VIP), None, f"{VIP} is a VIP, and no real: see vc5py vip --help"),
        ("203.0.113.77", None, "no real 203.0.113.77 in the configuration"),
        ("10.0.0.1", "wep", "no service 'wep' in the configuration; did you mean web?"),
        ("10.0.0.1", "x", "no service 'x' in the configuration"),
        ("10.0.0.20", "dns", "service 'dns' has no real 10.0.0.20; it is in web"),
        ("10.0.0.12", "dns", "no real 10.0.0.12 in service 'dns'; did you mean 10.0.0.1?"),
    ],
)
def test_unknown_names_get_a_suggestion(real: str, service: str | None, told: str) -> None:
    with pytest.raises(UnknownTargetError) as error:
        overriding.must_exist(begin(), Target(ip_address(real), service))
    assert str(error.value) == told


def test_notes_name_what_the_file_does_not_get() -> None:
    state = begin()
    state = after(state, overriding.set_state(state, Target(A, "dns"), DISABLED))
    state = after(state, overriding.set_weight(state, Target(A, None), 5))
    assert overriding.notes(begin()) == ()
    assert sorted(overriding.notes(state)) == [
        "10.0.0.1 in dns stays disabled by command; the file says enabled",
        "10.0.0.1 in web keeps weight 5 by command; the file says 1",
    ]


targets = st.builds(Target, st.sampled_from([A, B]), st.sampled_from([None, "web", "dns"]))
commands = st.tuples(targets, st.one_of(st.sampled_from(AdminState), st.integers(0, 1000)))


@given(st.lists(commands, max_size=8))
def test_last_command_holds_whatever_was_said_before(row: list[tuple[Target, AdminState | int]]) -> None:
    state = begin()
    for target, wanted in row:
        if isinstance(wanted, AdminState):
            state = after(state, overriding.set_state(state, target, wanted))
            assert all(e.admin is wanted for e in overriding.effective(state, target))
        else:
            state = after(state, overriding.set_weight(state, target, wanted))
            assert all(e.weight == wanted for e in overriding.effective(state, target))
    for real in (A, B):
        if any(override.real == real for override in overriding.shown(state.overrides)):
            state = after(state, overriding.reset(state, Target(real, None)))
    assert said(state) == []
