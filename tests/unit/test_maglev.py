"""The Maglev table: against the same matching found step by step, and by its promises."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vc5py.core import maglev

identity = st.integers(1, 2**64 - 1)
members = st.dictionaries(identity, st.integers(0, 9), min_size=1, max_size=24)
sizes = st.sampled_from([64, 256, 512])


def plain(members: dict[int, int], size: int) -> list[int]:
    """Step by step, the first in rank first: a slot goes to whoever comes to it first and still wants one."""
    ranked = sorted(members)
    total = max(1, sum(members.values()))
    left = {one: members[one] * size // total for one in ranked}
    if any(members.values()):
        by_remainder = sorted(ranked, key=lambda one: -(members[one] * size % total))
        for one in by_remainder[: size - sum(left.values())]:
            left[one] += 1
    table = [0] * size
    for step in range(size):
        for one in ranked:
            slot = ((one >> 8) + step * (one >> 32 | 1)) % size
            if left[one] and not table[slot]:
                table[slot] = one
                left[one] -= 1
    return table


def named(members: dict[int, int], size: int) -> list[int]:
    ids = list(members)
    return [ids[i] if i >= 0 else 0 for i in maglev.build(ids, [members[one] for one in ids], size)]


def some_ids(count: int) -> list[int]:
    source = random.Random(count)
    return [source.getrandbits(64) for _ in range(count)]


@given(members, st.randoms())
def test_order_does_not_matter(chosen: dict[int, int], source: random.Random) -> None:
    shuffled = list(chosen.items())
    source.shuffle(shuffled)
    assert named(chosen, 256) == named(dict(shuffled), 256)


@given(members, sizes)
def test_shares_differ_from_weights_by_less_than_a_slot(chosen: dict[int, int], size: int) -> None:
    shares = Counter(named(chosen, size))
    total = sum(chosen.values())
    if not total:
        assert shares == {0: size}
        return
    assert shares.total() == size and 0 not in shares
    for one, weight in chosen.items():
        assert abs(shares[one] - weight * size / total) < 1
        assert weight or not shares[one]


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=50), sizes)
def test_quotas_use_every_slot(weights: list[int], size: int) -> None:
    shares = maglev.quotas(weights, size)
    assert int(shares.sum()) == (size if any(weights) else 0)
    assert all(share == 0 for share, weight in zip(shares, weights, strict=True) if not weight)


def test_quotas_give_the_rest_to_the_largest_remainders() -> None:
    assert maglev.quotas([3, 3, 2], 256).tolist() == [96, 96, 64]
    assert maglev.quotas([1, 1, 1], 256).tolist() == [86, 85, 85]
    assert maglev.quotas([1, 5, 1], 16).tolist() == [2, 12, 2]  # 2.29, 11.43, 2.29


@settings(max_examples=60)
@given(members, sizes)
def test_it_is_the_table_made_step_by_step(chosen: dict[int, int], size: int) -> None:
    assert named(chosen, size) == plain(chosen, size)


def test_reals_with_the_same_way_share_it() -> None:
    """Identities that differ in bits that neither offset nor stride are made of."""
    chosen = {(1 << 60) + (n << 52) + 0x1234500: 1 for n in range(1, 5)}
    assert named(chosen, 256) == plain(chosen, 256)


def test_table_never_changes_between_versions() -> None:
    """Nodes of different versions share flows' slots: this is part of the protocol."""
    table = maglev.build([0x1122334455667788, 0x99AABBCCDDEEFF01, 0x0F1E2D3C4B5A6978], [1, 2, 1], 64)
    assert "".join(map(str, table)) == PINNED


PINNED = "1021120021101121021120021121121021120021120111012111112002110011"


# Reals -> the most of the others' slots that may move when one leaves, as a share of 65,536.
MOVED = {3: 0.001, 10: 0.0022, 100: 0.0045, 1000: 0.0045}


@pytest.mark.parametrize(("count", "most"), MOVED.items())
def test_losing_one_real_moves_few_slots_of_the_others(count: int, most: float) -> None:
    ids = some_ids(count)
    before = maglev.build(ids, [1] * count, maglev.MAX_SLOTS)
    moved = []
    for gone in range(0, count, -(-count // 10)):
        weights = [int(n != gone) for n in range(count)]
        after = maglev.build(ids, weights, maglev.MAX_SLOTS)
        moved.append(float(np.mean((before != after) & (before != gone))))
    print(f"{count} reals: {np.mean(moved):.3%} of others' slots moved on average, {max(moved):.3%} at most")
    assert np.mean(moved) < most


@settings(max_examples=30)
@given(st.integers(2, 24), st.integers(0, 23), st.sampled_from([0, 2]))
def test_a_change_of_one_real_moves_few_slots_in_a_small_table(count: int, which: int, weight: int) -> None:
    ids = some_ids(count)
    size = maglev.table_size(count)
    changed = ids[which % count]
    before = named(dict.fromkeys(ids, 1), size)
    after = named(dict.fromkeys(ids, 1) | {changed: weight}, size)
    moved = sum(a != b and changed not in (a, b) for a, b in zip(before, after, strict=True))
    assert moved < size * 0.03


@settings(max_examples=20)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(0, 99))
def test_shares_are_within_a_percent_of_the_weights(weights: list[int], seed: int) -> None:
    """Where every real has a hundred slots or more on average per unit of weight."""
    ids = some_ids(100 + seed)[: len(weights)]
    size = 1 << (100 * sum(weights) - 1).bit_length()
    counts = np.bincount(maglev.build(ids, weights, size), minlength=len(ids))
    wanted = np.array(weights) * size / sum(weights)
    assert (abs(counts - wanted) / wanted < 0.01).all()


def test_many_reals_and_the_largest_table() -> None:
    ids = some_ids(600)
    table = maglev.build(ids, [1] * 600, maglev.table_size(600))
    counts = np.bincount(table, minlength=600)
    assert len(table) == maglev.MAX_SLOTS
    assert set(counts.tolist()) == {109, 110}


@pytest.mark.parametrize(
    ("reals", "slots"),
    [(0, 256), (1, 256), (2, 256), (3, 512), (8, 1024), (9, 2048), (512, 65536), (513, 65536), (5000, 65536)],
)
def test_table_size(reals: int, slots: int) -> None:
    assert maglev.table_size(reals) == slots
