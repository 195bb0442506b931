"""Slow start: how the steps are taken, and what they make of the weights."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.weights import STEPS, next_step_at, ramp_step, scaled


def test_whoever_joined_long_ago_or_without_slow_start_is_at_the_last_step() -> None:
    assert ramp_step(None, 70.0, 5.0) == STEPS
    assert ramp_step(5.0, 0.0, 5.0) == STEPS
    assert ramp_step(5.0, 70.0, 75.0) == STEPS


def test_one_step_at_every_line_of_the_grid() -> None:
    steps = [ramp_step(705.0, 70.0, float(now)) for now in range(705, 790)]
    assert steps == [1] * 5 + [2] * 10 + [3] * 10 + [4] * 10 + [5] * 10 + [6] * 10 + [7] * 10 + [8] * 20
    assert next_step_at(70.0, 705.0) == 710.0


@pytest.mark.parametrize(
    ("weights", "steps", "result"),
    [
        ([], [], ([], 1)),
        ([3, 5], [8, 8], ([3, 5], 1)),
        ([3, 5], [2, 2], ([3, 5], 1)),
        ([10, 10], [8, 4], ([10, 5], 1)),
        ([1, 1], [8, 4], ([2, 1], 2)),
        ([1, 1, 1], [8, 1, 4], ([8, 1, 4], 8)),
        ([8, 8], [8, 1], ([8, 1], 1)),
        ([1, 1], [6, 2], ([3, 1], 3)),
        ([0, 7], [1, 7], ([0, 7], 1)),
    ],
)
def test_scaled(weights: list[int], steps: list[int], result: tuple[list[int], int]) -> None:
    assert scaled(weights, steps) == result


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, STEPS)), min_size=1, max_size=20))
def test_scaled_is_exact_with_the_least_multiplier(pairs: list[tuple[int, int]]) -> None:
    weights, steps = [w for w, _ in pairs], [s for _, s in pairs]
    result, times = scaled(weights, steps)
    exact = [Fraction(w * s, max(steps)) for w, s in pairs]
    assert result == [part * times for part in exact]
    assert min(result) >= 1
    assert times == min(n for n in range(1, STEPS + 1) if all((part * n).denominator == 1 for part in exact))


@given(st.floats(1, 1e6), st.floats(1, 3600), st.lists(st.floats(0, 600), max_size=40))
def test_a_ramp_only_grows_and_ends_in_time(since: float, slow_start_s: float, pauses: list[float]) -> None:
    now, before = since, ramp_step(since, slow_start_s, since)
    assert before == 1
    for pause in pauses:
        now += pause
        step = ramp_step(since, slow_start_s, now)
        assert before <= step <= STEPS
        before = step
    assert ramp_step(since, slow_start_s, since + slow_start_s * 1.0001) == STEPS
