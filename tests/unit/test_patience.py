"""That a machine that stands still fails no test."""

from __future__ import annotations

import asyncio
import time

from hypothesis import settings

from tests.patience import STEP_S, PatientLoop


async def test_time_in_which_we_do_not_run_is_no_time() -> None:
    assert isinstance(asyncio.get_running_loop(), PatientLoop)
    async with asyncio.timeout(2 * STEP_S):
        time.sleep(10 * STEP_S)  # noqa: ASYNC251 (as if we had been stopped)
        await asyncio.sleep(0)


async def test_waiting_takes_its_time() -> None:
    begun = time.monotonic()
    await asyncio.sleep(3.5 * STEP_S)
    assert time.monotonic() - begun >= 3.5 * STEP_S


def test_examples_may_take_their_time() -> None:
    assert settings.default is not None and settings.default.deadline is None
