"""The fair queue: turns between groups, and a bounded share for the slow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vc5py.checks.queue import FairQueue, RoundRobin


def drain(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (admitted := queue.pop()) is not None:
        taken.append(admitted[0])
    return taken


def test_groups_take_turns_and_keep_their_order() -> None:
    queue: RoundRobin[str] = RoundRobin()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.push(item[0], item)
    taken = []
    while queue:
        taken.append(queue.pop())
    assert taken == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_admits_no_more_than_the_limit() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for number in range(5):
        queue.push("a", f"p{number}", slow=False)
    assert drain(queue) == ["p0", "p1", "p2"]
    queue.release(slow=False)
    assert drain(queue) == ["p3"]
    assert queue.in_flight == 3


def test_the_slow_hold_at_most_half_of_the_places() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for number in range(9):
        queue.push("a", f"slow{number}", slow=True)
    assert drain(queue) == ["slow0", "slow1"]
    queue.push("a", "prompt", slow=False)
    assert drain(queue) == ["prompt"]


def test_a_released_place_goes_to_each_lane_in_turn() -> None:
    queue: FairQueue[str] = FairQueue(2)
    for number in range(3):
        queue.push("a", f"slow{number}", slow=True)
        queue.push("a", f"prompt{number}", slow=False)
    assert drain(queue) == ["prompt0", "slow0"]
    queue.release(slow=True)
    assert drain(queue) == ["prompt1"]
    queue.release(slow=False)
    assert drain(queue) == ["slow1"]


def test_needs_a_place_for_each_lane() -> None:
    with pytest.raises(ValueError, match="each lane"):
        FairQueue(1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(2, 6))
def test_everything_goes_once_within_the_limits(pushed: list[tuple[str, bool]], limit: int) -> None:
    queue: FairQueue[int] = FairQueue(limit)
    for number, (group, slow) in enumerate(pushed):
        queue.push(group, number, slow)
    taken: list[int] = []
    held: list[bool] = []
    while len(taken) < len(pushed):
        while (admitted := queue.pop()) is not None:
            taken.append(admitted[0])
            held.append(admitted[1])
            assert len(held) == queue.in_flight <= limit
            assert sum(held) <= limit // 2
        queue.release(held.pop(0))
    assert sorted(taken) == list(range(len(pushed)))
    for lane in pushed:
        same = [number for number in taken if pushed[number] == lane]
        assert same == sorted(same)
