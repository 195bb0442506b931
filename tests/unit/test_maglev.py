"""The Maglev table: against the paper's algorithm written plainly, and by its promises."""

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
    """Section 3.4 of the paper, one step at a time: by slot the identity, 0 where there is none."""
    ranked = sorted(members)
    exact = {one: members[one] * size / max(1, sum(members.values())) for one in ranked}
    left = {one: int(exact[one]) for one in ranked}
    if any(members.values()):
        by_remainder = sorted(ranked, key=lambda one: -(exact[one] - left[one]))
        for one in by_remainder[: size - sum(left.values())]:
            left[one] += 1
    table = [0] * size
    position = dict.fromkeys(ranked, 0)
    while any(left.values()):
        for one in ranked:
            if not left[one]:
                continue
            while True:
                slot = ((one >> 8) + position[one] * (one >> 32 | 1)) % size
                position[one] += 1
                if not table[slot]:
                    break
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


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24])
def test_without_weights_it_is_the_papers_table(count: int) -> None:
    chosen = dict.fromkeys(some_ids(count), 1)
    assert sorted(Counter(named(chosen, 256)).values()) == sorted(Counter(plain(chosen, 256)).values())
    assert _overlap(named(chosen, 256), plain(chosen, 256)) > 0.9


def _overlap(one: list[int], other: list[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_table_never_changes_between_versions() -> None:
    """Nodes of different versions share flows' slots: this is part of the protocol."""
    table = maglev.build([0x1122334455667788, 0x99AABBCCDDEEFF01, 0x0F1E2D3C4B5A6978], [1, 2, 1], 64)
    assert "".join(map(str, table)) == PINNED


PINNED = "1021120021101111021120021121121021120021120112012111112002110011"


@settings(max_examples=30)
@given(st.integers(3, 24), st.integers(0, 23))
def test_losing_one_real_moves_few_slots_of_the_others(count: int, victim: int) -> None:
    ids = some_ids(count)
    size = maglev.table_size(count)
    gone = ids[victim % count]
    before = named(dict.fromkeys(ids, 1), size)
    after = named(dict.fromkeys([one for one in ids if one != gone], 1), size)
    moved = sum(a != b for a, b in zip(before, after, strict=True) if a != gone)
    assert moved < size * 0.1


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
