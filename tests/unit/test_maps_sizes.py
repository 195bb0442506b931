"""Which maps of an earlier run do for a configuration, and how counts of more CPUs become those of fewer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vc5py.dataplane.inherit import folded
from vc5py.dataplane.maps import Sizes

THERE = Sizes(64, 64, 256, 2048, 16, 16, 8, 16, 64)


@pytest.mark.parametrize(
    ("wanted", "serves"),
    [
        (THERE, True),
        (replace(THERE, log=1), True),
        (replace(THERE, services=10, slot_lines=100), True),
        (replace(THERE, slot_lines=2049), False),
        (replace(THERE, flow_sets=32), False),
        (replace(THERE, cpus=1, log=64), True),
        (replace(THERE, cpus=1, log=512), False),  # as many entries as there are in all eight rings
    ],
)
def test_maps_of_an_earlier_run_are_adopted_where_they_do(wanted: Sizes, serves: bool) -> None:
    assert THERE.serve(wanted) is serves


@pytest.mark.parametrize(("rows", "cpus"), [(4, 4), (2, 4), (4, 2), (5, 2), (8, 1)])
def test_counts_of_more_cpus_are_folded_into_fewer(rows: int, cpus: int) -> None:
    counts = np.arange(3 * rows, dtype=np.uint64).reshape(rows, 3) + 1
    out = folded(counts, cpus)
    assert len(out) == min(rows, cpus)
    assert (out.sum(axis=0) == counts.sum(axis=0)).all()
    assert (out[0] == counts[::cpus].sum(axis=0)).all()
