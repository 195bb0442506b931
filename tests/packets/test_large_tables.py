"""Maps above 256 MiB, which the programs address by look-ups instead of directly: another path of the C, and
other code for the verifier to judge.

Once with a flow table of 512 MiB (32 M entries), and once with small maps none of which is direct.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.packets import harness
from tests.packets.cases import CASES
from tests.packets.cases_base import Case
from tests.packets.test_frames import check, prepare
from vc5py.dataplane import abi, maps

LARGE_SETS = 2 * maps.DIRECT_MAX_BYTES // (abi.FLOW_WAYS * abi.FLOW_ENTRY.itemsize)

# Entries written, found in either set, replaced, moved; each case empties the whole table first.
BY_ENTRIES = (
    "tcp_syn",
    "flow_12_second_set",
    "crowded",
    "v6_crowded",
    "draining_known_11",
    "least_0_loaded",
    "fragment4_by_flow_last",
)


class LargeKernel(harness.Kernel):
    """With a flow table of `LARGE_SETS`."""

    def __init__(self) -> None:
        super().__init__(inherited=maps.create(replace(harness.SIZES, flow_sets=LARGE_SETS)))

    def sets_of(self, flow_hash: int) -> tuple[int, int]:
        return flow_hash & LARGE_SETS - 1, flow_hash >> 24 & LARGE_SETS - 1


@pytest.fixture(scope="module")
def large() -> Iterator[LargeKernel]:
    with LargeKernel() as kernel:
        assert not kernel.maps.macros()["DIRECT_flows"]
        yield kernel


@pytest.mark.parametrize("id_", BY_ENTRIES)
def test_frame_with_a_large_flow_table(large: LargeKernel, id_: str) -> None:
    (case,) = (case for case in CASES if case.id == id_)
    prepare(large, case)
    check(case.expected, large.run(case.frame, case.side, bare=case.bare))


def one_for_each_verdict() -> list[Case]:
    return list({case.verdict: case for case in CASES}.values())


def test_frames_where_no_map_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every verdict one; addresses of maps are compiled in otherwise."""
    monkeypatch.setattr(maps, "DIRECT_MAX_BYTES", 0)
    with harness.Kernel() as kernel:
        assert not any(direct for name, direct in kernel.maps.macros().items() if name.startswith("DIRECT_"))
        for case in one_for_each_verdict():
            prepare(kernel, case)
            check(case.expected, kernel.run(case.frame, case.side, bare=case.bare))
