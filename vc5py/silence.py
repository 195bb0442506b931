"""How long somebody has said nothing, as far as we can know: we may have been away ourselves.

A process that was stopped (SIGSTOP, a frozen cgroup, a paused machine), or kept from the CPU, finds all of
its timers due when it goes on. Invariants: that alone makes nobody silent; what had come by then is heard
first. Must not know: who is listened to, and what becomes of the silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

STEPS = 10

T = TypeVar("T")


async def hear(listen: Callable[[], Awaitable[T]], limit_s: float) -> T:
    """What `listen` returns; cancelled, it must have lost nothing. Raises TimeoutError after `limit_s`
    without anything: that is waited for in steps, of which no more than one goes by while we are away.
    """
    for _ in range(STEPS):
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s / STEPS):
                return await listen()
    raise TimeoutError
