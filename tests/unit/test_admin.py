"""What people say at run time: which word counts, and that it survives being written down."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.admin import MAX_WEIGHT, NO_OVERRIDES, Override, Overrides, from_json, to_json
from vc5py.model import AdminState, IPAddress, Real

ONE, OTHER = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")
FILED = Real(ONE, weight=3, admin=AdminState.DRAINING)
ENABLED, DRAINING, DISABLED = AdminState.ENABLED, AdminState.DRAINING, AdminState.DISABLED


def test_without_a_word_the_file_counts() -> None:
    assert NO_OVERRIDES.state_of("web", FILED) is DRAINING
    assert NO_OVERRIDES.weight_of("web", FILED) == 3
    others = NO_OVERRIDES.with_state(OTHER, None, DISABLED).with_weight(ONE, "mail", 9)
    assert (others.state_of("web", FILED), others.weight_of("web", FILED)) == (DRAINING, 3)


def test_the_most_specific_word_counts_for_each_of_both() -> None:
    said = NO_OVERRIDES.with_state(ONE, None, DISABLED).with_weight(ONE, None, 5)
    assert (said.state_of("web", FILED), said.weight_of("web", FILED)) == (DISABLED, 5)
    said = said.with_state(ONE, "web", ENABLED)
    assert (said.state_of("web", FILED), said.weight_of("web", FILED)) == (ENABLED, 5)
    assert (said.state_of("mail", FILED), said.weight_of("mail", FILED)) == (DISABLED, 5)
    said = said.with_weight(ONE, "web", 0)
    assert (said.weight_of("web", FILED), said.weight_of("mail", FILED)) == (0, 5)


def test_set_back_the_next_word_counts_and_nothing_is_left() -> None:
    said = NO_OVERRIDES.with_state(ONE, None, DISABLED).with_state(ONE, "web", ENABLED)
    said = said.with_state(ONE, "web", None)
    assert said.state_of("web", FILED) is DISABLED
    assert said.with_state(ONE, None, None) == NO_OVERRIDES
    assert said.with_weight(ONE, None, 4).with_state(ONE, None, None).reals == {
        (None, ONE): Override(weight=4)
    }


def test_a_word_never_changes_what_was_said_before() -> None:
    before = NO_OVERRIDES.with_weight(ONE, None, 5)
    before.with_weight(ONE, None, 6)
    assert before.weight_of("web", FILED) == 5
    with pytest.raises(TypeError):
        before.reals[None, OTHER] = Override(weight=1)  # type: ignore[index]


words = st.lists(
    st.tuples(
        st.sampled_from([ONE, OTHER]),
        st.sampled_from([None, "web", "mail"]),
        st.one_of(st.none(), st.sampled_from(AdminState)),
        st.one_of(st.none(), st.integers(0, MAX_WEIGHT)),
    )
)


@given(words)
def test_json_keeps_everything(
    row: list[tuple[IPAddress, str | None, AdminState | None, int | None]],
) -> None:
    said = NO_OVERRIDES
    for real, service, state, weight in row:
        said = said.with_state(real, service, state).with_weight(real, service, weight)
    assert from_json(json.loads(json.dumps(to_json(said)))) == said


def test_json_is_plain_and_in_order() -> None:
    said = (
        NO_OVERRIDES.with_state(OTHER, "web", DRAINING).with_weight(ONE, "web", 0).with_weight(OTHER, None, 7)
    )
    assert to_json(said) == {
        "reals": [
            {"real": "fd00::1", "weight": 7},
            {"real": "10.0.0.1", "service": "web", "weight": 0},
            {"real": "fd00::1", "service": "web", "state": "draining"},
        ]
    }
    assert from_json({"reals": []}) == Overrides()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, 'expected {"reals": [...], "vips": [...]}'),
        ([], 'expected {"reals": [...], "vips": [...]}'),
        ({"reals": {}}, 'expected {"reals": [...], "vips": [...]}'),
        ({"reals": [], "more": 1}, 'expected {"reals": [...], "vips": [...]}'),
        ({"reals": ["10.0.0.1"]}, "entry 1: expected a mapping"),
        ({"reals": [{"real": "10.0.0.1", "wieght": 1}]}, "entry 1: unknown key 'wieght'"),
        ({"reals": [{"weight": 1}]}, "entry 1: real must be an address"),
        ({"reals": [{"real": "10.0.0.1.5", "weight": 1}]}, "entry 1: '10.0.0.1.5' is not an address"),
        ({"reals": [{"real": "10.0.0.1", "service": 5, "weight": 1}]}, "entry 1: service must be a name"),
        ({"reals": [{"real": "10.0.0.1"}]}, "entry 1: neither state nor weight"),
        (
            {"reals": [{"real": "10.0.0.1", "state": "gone"}]},
            "entry 1: state must be one of enabled, draining, disabled",
        ),
        (
            {"reals": [{"real": "10.0.0.1", "state": []}]},
            "entry 1: state must be one of enabled, draining, disabled",
        ),
        (
            {"reals": [{"real": "10.0.0.1", "weight": -1}]},
            "entry 1: weight must be a whole number from 0 to 1000",
        ),
        (
            {"reals": [{"real": "10.0.0.1", "weight": 1001}]},
            "entry 1: weight must be a whole number from 0 to 1000",
        ),
        (
            {"reals": [{"real": "10.0.0.1", "weight": True}]},
            "entry 1: weight must be a whole number from 0 to 1000",
        ),
        ({"reals": [{"real": "10.0.0.1", "weight": 1}] * 2}, "entry 2: a second one for real 10.0.0.1"),
    ],
)
def test_json_of_another_kind_is_refused_in_plain_words(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        from_json(value)
    assert str(error.value) == message
