"""Rise and fall, and m of n: every transition of the tables, and what must hold over any row of results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.core.health import Health, HealthState, Quorum, adapted, initial, step

DOWN, RISING, UP, FALLING = HealthState.DOWN, HealthState.RISING, HealthState.UP, HealthState.FALLING
RISE, FALL = 3, 4

EVERY_TRANSITION = [
    (Health(DOWN), True, Health(RISING, 1)),
    (Health(DOWN), False, Health(DOWN)),
    (Health(RISING, 1), True, Health(RISING, 2)),
    (Health(RISING, 2), True, Health(UP)),
    (Health(RISING, 2), False, Health(DOWN)),
    (Health(UP), True, Health(UP)),
    (Health(UP), False, Health(FALLING, 1)),
    (Health(FALLING, 3), True, Health(UP)),
    (Health(FALLING, 2), False, Health(FALLING, 3)),
    (Health(FALLING, 3), False, Health(DOWN)),
]

results = st.lists(st.booleans(), max_size=60)
threshold = st.integers(1, 5)


def run(start: Health, row: list[bool], rise: int, fall: int) -> list[Health]:
    history = [start]
    for ok in row:
        history.append(step(history[-1], ok, rise, fall))
    return history


@pytest.mark.parametrize(("before", "ok", "after"), EVERY_TRANSITION)
def test_transition(before: Health, ok: bool, after: Health) -> None:
    assert step(before, ok, RISE, FALL) == after


def test_every_state_and_event_is_covered() -> None:
    assert {(before.state, ok) for before, ok, _ in EVERY_TRANSITION} == {
        (state, ok) for state in HealthState for ok in (True, False)
    }


@pytest.mark.parametrize("before", [Health(DOWN), Health(RISING, 1), Health(UP), Health(FALLING, 1)])
@pytest.mark.parametrize("ok", [True, False])
def test_thresholds_of_one_act_at_once(before: Health, ok: bool) -> None:
    assert step(before, ok, 1, 1) == Health(UP if ok else DOWN)


def test_falling_still_counts_as_up_and_rising_does_not() -> None:
    assert [state for state in HealthState if state.is_up] == [UP, FALLING]
    assert [state for state in HealthState if state.is_changing] == [RISING, FALLING]
    assert Health(FALLING, 1).is_up
    assert not Health(RISING, 1).is_up


def test_a_restart_adopts_what_the_data_plane_has() -> None:
    assert initial(up=True) == Health(UP)
    assert initial(up=False) == Health(DOWN)


def test_a_lower_threshold_takes_effect_with_the_next_result() -> None:
    assert step(Health(FALLING, 5), False, RISE, 2) == Health(DOWN)
    assert step(Health(RISING, 5), True, 2, FALL) == Health(UP)


@given(results, threshold, threshold, st.booleans())
def test_state_changes_only_by_whole_rows(row: list[bool], rise: int, fall: int, up: bool) -> None:
    history = run(initial(up), row, rise, fall)
    for index in range(1, len(history)):
        was, now = history[index - 1].is_up, history[index].is_up
        if now and not was:
            assert index >= rise and all(row[index - rise : index])
        if was and not now:
            assert index >= fall and not any(row[index - fall : index])


@given(results, threshold, threshold, st.booleans())
def test_a_whole_row_always_decides(row: list[bool], rise: int, fall: int, up: bool) -> None:
    end = run(initial(up), row, rise, fall)[-1]
    assert run(end, [True] * rise, rise, fall)[-1] == Health(UP)
    assert run(end, [False] * fall, rise, fall)[-1] == Health(DOWN)


@given(results, threshold, threshold, st.booleans())
def test_the_streak_stays_below_the_threshold(row: list[bool], rise: int, fall: int, up: bool) -> None:
    limits = {DOWN: range(1), UP: range(1), RISING: range(1, rise), FALLING: range(1, fall)}
    assert all(health.streak in limits[health.state] for health in run(initial(up), row, rise, fall))


# m of n

OF_FIVE = (3, 5)

EVERY_QUORUM_TRANSITION = [
    (Health(DOWN, window=0b00000), True, Health(RISING, window=0b00001)),
    (Health(DOWN, window=0b00000), False, Health(DOWN, window=0b00000)),
    (Health(DOWN, window=0b00110), True, Health(UP, window=0b01101)),
    (Health(RISING, window=0b00001), True, Health(RISING, window=0b00011)),
    (Health(RISING, window=0b00011), True, Health(UP, window=0b00111)),
    (Health(RISING, window=0b00001), False, Health(DOWN, window=0b00010)),
    (Health(UP, window=0b11111), True, Health(UP, window=0b11111)),
    (Health(UP, window=0b11111), False, Health(FALLING, window=0b11110)),
    (Health(UP, window=0b11001), False, Health(DOWN, window=0b10010)),
    (Health(FALLING, window=0b11110), True, Health(UP, window=0b11101)),
    (Health(FALLING, window=0b11110), False, Health(FALLING, window=0b11100)),
    (Health(FALLING, window=0b11100), False, Health(DOWN, window=0b11000)),
]


@pytest.mark.parametrize(("before", "ok", "after"), EVERY_QUORUM_TRANSITION)
def test_quorum_transition(before: Health, ok: bool, after: Health) -> None:
    assert step(before, ok, RISE, FALL, OF_FIVE) == after


def test_every_state_and_event_is_covered_by_quorum_too() -> None:
    assert {(before.state, ok) for before, ok, _ in EVERY_QUORUM_TRANSITION} == {
        (state, ok) for state in HealthState for ok in (True, False)
    }


def test_before_n_probes_the_window_is_what_the_beginning_stands_for() -> None:
    assert initial(up=False, quorum=OF_FIVE) == Health(DOWN, window=0)
    assert initial(up=True, quorum=OF_FIVE) == Health(UP, window=0b11111)


def test_what_changes_nothing_is_the_very_same_health() -> None:
    for up in (True, False):
        health = initial(up, OF_FIVE)
        assert step(health, up, RISE, FALL, OF_FIVE) is health


@pytest.mark.parametrize("before", [None, OF_FIVE])
@pytest.mark.parametrize("after", [None, OF_FIVE, (2, 3)])
def test_another_quorum_keeps_what_is_up_and_counts_anew(before: Quorum | None, after: Quorum | None) -> None:
    up = step(initial(True, before), False, 9, 9, before)
    down = step(initial(False, before), True, 9, 9, before)
    assert (up.state, down.state) == (FALLING, RISING)
    same = before == after
    assert adapted(up, before, after) == (up if same else initial(True, after))
    assert adapted(down, before, after) == (down if same else initial(False, after))


quorums = st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


@given(results, quorums, st.booleans())
def test_up_exactly_while_m_of_the_last_n_succeeded(row: list[bool], quorum: Quorum, up: bool) -> None:
    m, n = quorum
    seen = [up] * n
    health = initial(up, quorum)
    for ok in row:
        seen.append(ok)
        health = step(health, ok, 1, 1, quorum)
        assert health.is_up == (sum(seen[-n:]) >= m)
        assert health.state.is_changing == (health.is_up != ok)
