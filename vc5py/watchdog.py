"""Tells systemd how it is with the balancer: ready, alive, stopping (sd_notify(3)).

Must not know: what the balancer does. Where nobody asked to be told, it does nothing. Invariants: signs of
life come from a task of the event loop, so a loop that hangs gives none; telling takes a moment at most, and
never fails.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

READY = "READY=1"
STOPPING = "STOPPING=1"
_ALIVE = "WATCHDOG=1"
# Signs in the time that systemd allows without any.
_SIGNS = 4
# For a systemd that is busy.
_MOMENT_S = 0.5


def tell(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(_MOMENT_S)
        sender.sendto(state.encode(), address)


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Gives signs of life meanwhile."""
    task = asyncio.create_task(_give_signs(_limit_s()), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _give_signs(limit_s: float) -> None:
    while limit_s:
        tell(_ALIVE)
        await asyncio.sleep(limit_s / _SIGNS)


def _limit_s() -> float:
    """How long there may be none (sd_watchdog_enabled(3)); 0 where nobody watches us."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0, int(os.environ.get("WATCHDOG_USEC", "0"))) / 1e6
    except ValueError:
        return 0.0
