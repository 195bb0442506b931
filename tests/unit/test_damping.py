"""Points for going down: when a backend is kept out, and until when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.damping import NONE, Points, value_at, went_down
from vc5py.model import Damping

POLICY = Damping(suppress=3.0, reuse=1.0, half_life_s=60.0, longest_s=600.0)


def after(*times: float, policy: Damping = POLICY) -> Points:
    points = NONE
    for time in times:
        points = went_down(points, policy, time)
    return points


def test_every_time_down_costs_a_point_and_points_halve() -> None:
    assert after(100.0).value == 1.0
    assert value_at(after(100.0), POLICY, 160.0) == pytest.approx(0.5)
    assert after(100.0, 160.0).value == pytest.approx(1.5)
    assert value_at(after(100.0, 160.0), POLICY, 280.0) == pytest.approx(0.375)


def test_kept_out_from_suppress_on_until_reuse() -> None:
    assert after(100.0, 100.0).until == -math.inf
    points = after(100.0, 100.0, 100.0)
    assert points.until == pytest.approx(100.0 + 60.0 * math.log2(3))
    assert value_at(points, POLICY, points.until) == pytest.approx(POLICY.reuse)


def test_while_kept_out_every_further_time_counts() -> None:
    points = after(100.0, 100.0, 100.0, 190.0)
    assert points.value < POLICY.suppress
    assert points.until == pytest.approx(190.0 + 60.0 * math.log2(points.value))


def test_a_milder_policy_lets_nobody_out_earlier() -> None:
    """Going down once more is no way out for who is kept out already, whatever has been configured since."""
    kept_out = after(100.0, 100.0, 100.0)
    assert went_down(kept_out, replace(POLICY, half_life_s=1.0), 110.0).until == kept_out.until


def test_once_over_it_takes_as_many_points_again() -> None:
    end = after(100.0, 100.0, 100.0).until
    assert after(100.0, 100.0, 100.0, end).until == -math.inf


def test_never_for_longer_than_the_longest() -> None:
    policy = Damping(suppress=3.0, longest_s=30.0)
    points = after(*[100.0] * 50, policy=policy)
    assert points.until == 130.0
    assert value_at(points, policy, 130.0) == pytest.approx(policy.reuse)


def test_without_a_policy_nothing_is_counted() -> None:
    assert went_down(after(100.0, 100.0, 100.0), None, 101.0) == NONE


@given(st.lists(st.floats(0, 300), max_size=40), st.floats(1.5, 8), st.floats(1, 900))
def test_bounds(pauses: list[float], suppress: float, longest_s: float) -> None:
    policy = Damping(suppress=suppress, longest_s=longest_s)
    points, now = NONE, 1000.0
    for number, pause in enumerate(pauses, 1):
        now += pause
        before, points = points, went_down(points, policy, now)
        assert points.value > 0
        assert points.until <= now + longest_s
        assert points.until == -math.inf or points.until >= before.until
        if number < suppress:
            assert points.until == -math.inf
