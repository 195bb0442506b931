"""The data plane under test, compiled once for all packet tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packets.harness import Kernel
from tests.packets.world import WORLD


@pytest.fixture(scope="session")
def frozen_kernel() -> Iterator[Kernel]:
    """Its tick is always 0: what is old was written with an age."""
    with Kernel() as kernel:
        yield kernel


@pytest.fixture(scope="session")
def quick_kernel() -> Iterator[Kernel]:
    """Its ticks are single jiffies, by the kernel's clock."""
    with Kernel(tick_shift=0) as kernel:
        yield kernel


@pytest.fixture
def kernel(frozen_kernel: Kernel) -> Kernel:
    """The usual world and no flows."""
    frozen_kernel.install(WORLD)
    return frozen_kernel


@pytest.fixture
def ticking(quick_kernel: Kernel) -> Kernel:
    """The usual world, no flows, and a tick every few milliseconds."""
    quick_kernel.install(WORLD)
    return quick_kernel
