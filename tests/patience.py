"""An event loop whose clock counts no time in which its process was kept from running.

On a busy machine that may be seconds, at any moment: between the two halves of an exchange, or before a
server of the test has sent its first byte. No deadline is missed for that.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

# The most that counts of the time between two looks at the clock; it is looked at as often.
STEP_S = 0.02


class _Selector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return super().select(timeout if timeout is None else min(timeout, STEP_S))


class PatientLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._counted_s = 0.0
        self._looked_s = time.monotonic()
        super().__init__(_Selector())

    def time(self) -> float:
        now_s = time.monotonic()
        self._counted_s += min(now_s - self._looked_s, STEP_S)
        self._looked_s = now_s
        return self._counted_s


class PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return PatientLoop()
