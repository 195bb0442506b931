"""A short run of the differential fuzzer, and that it would notice something; CI has a long one."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from tests.fuzz.differential import BATCH, Fuzzer, corpus, run
from tests.fuzz.mutate import frames
from tests.packets.harness import Kernel
from tests.packets.world import Side

EXECUTIONS, SEED = 20_000, 1


def test_kernel_and_oracle_agree(request: pytest.FixtureRequest) -> None:
    executions = request.config.getoption("--executions", None) or EXECUTIONS
    seed = request.config.getoption("--seed", None) or SEED
    print(f"seed={seed} executions={executions}")
    result = run(executions, seed, workers=1 if executions <= EXECUTIONS else None)
    assert not result.mismatches, "\n".join(map(str, result.mismatches))
    assert result.executions >= executions
    assert len(result.verdicts) > 20, "the frames have become too much alike"


def test_a_wrong_bit_is_noticed() -> None:
    """Of MAC addresses in the maps."""
    with Kernel() as kernel:
        fuzzer = Fuzzer(kernel)
        assert not fuzzer.batch(SEED, 0, BATCH).mismatches
        kernel.maps.backends["link"] ^= np.uint64(1)
        found = fuzzer.batch(SEED, 0, BATCH).mismatches
        assert found and all(m.got.verdict == m.expected.verdict for m in found[:1])


def test_the_same_seed_makes_the_same_frames() -> None:
    first, again, other = (list(islice(frames(seed, corpus(), Side.NEAR), 100)) for seed in (5, 5, 6))
    assert first == again != other
