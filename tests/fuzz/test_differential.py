"""A short run of the differential fuzzer, and that it would notice something; CI has a long one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from tests.fuzz.differential import BATCH, SETTINGS, Fuzzer, corpus, run
from tests.fuzz.mutate import frames, quote
from tests.packets.cases import CASES
from tests.packets.harness import Kernel
from tests.packets.oracle import UNREACHABLE
from tests.packets.oracle_read import read
from tests.packets.world import Side
from vc5py.dataplane import abi

EXECUTIONS, SEED, A_LONG_RUN = 20_000, 1, 500_000


@pytest.fixture(scope="module")
def frozen_kernel() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


def test_kernel_and_oracle_agree(request: pytest.FixtureRequest) -> None:
    executions = request.config.getoption("--executions", None) or EXECUTIONS
    seed = request.config.getoption("--seed", None) or SEED
    print(f"seed={seed} executions={executions}")
    result = run(executions, seed, workers=1 if executions <= EXECUTIONS else None)
    assert not result.mismatches, "\n".join(map(str, result.mismatches))
    assert result.executions >= executions
    unseen = {verdict.name for verdict in abi.verdicts()} - result.verdicts.keys() - UNREACHABLE
    # A short run doesn't come to the rarest.
    assert len(unseen) < 5 if executions < A_LONG_RUN else not unseen, "the frames have become too much alike"


@pytest.mark.parametrize("egress", [False, True], ids=["clients", "own"])
def test_a_wrong_bit_is_noticed(frozen_kernel: Kernel, egress: bool) -> None:
    """Of MAC addresses in the maps."""
    fuzzer = Fuzzer(frozen_kernel)
    setting = next(n for n, each in enumerate(SETTINGS) if each.egress is egress)
    assert not fuzzer.batch(SEED, setting, BATCH).mismatches
    frozen_kernel.maps.backends["link"] ^= np.uint64(1)
    found = fuzzer.batch(SEED, setting, BATCH).mismatches
    frozen_kernel.maps.backends["link"] ^= np.uint64(1)
    assert found and all(m.got.verdict == m.expected.verdict for m in found[:1])


def test_the_build_for_large_frames_agrees() -> None:
    """All settings, with the program that reads frames of several buffers."""
    with Kernel(frags=True) as kernel:
        fuzzer = Fuzzer(kernel)
        for setting in range(len(SETTINGS)):
            found = fuzzer.batch(SEED, setting, BATCH).mismatches
            assert not found, "\n".join(map(str, found))


def test_quotes_are_changed_behind_a_header_that_is_right() -> None:
    """So that what is wrong with a quote is reached, and not hidden by what is wrong before it."""
    errors = [case.frame for case in CASES if case.verdict == "forwarded_icmp"]
    r, quotes, whole, rounds = random.Random(SEED), set(), 0, 2000
    for _ in range(rounds):
        frame = r.choice(errors)
        changed = bytearray(frame)
        quote(r, changed)
        p, problem = read(bytes(changed))
        whole += problem is None
        at = read(frame)[0].l4 + 8
        length = read(frame)[0].l3 + (2 if p.version == 4 else 4)
        assert changed[:length] == frame[:length] and changed[length + 2 : at] == frame[length + 2 : at]
        quotes.add(bytes(changed[at:]))
    assert whole > rounds * 0.8
    assert len(quotes) > rounds * 0.5


def test_the_same_seed_makes_the_same_frames() -> None:
    first, again, other = (list(islice(frames(seed, corpus(), Side.NEAR), 100)) for seed in (5, 5, 6))
    assert first == again != other
