"""Who is silent, and who is only not listened to: by a clock that leaps, as after a stop of ourselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from vc5py.silence import hear

LIMIT_S = 30.0


class Leaping(asyncio.SelectorEventLoop):
    """To it, and to whoever asks it for the time, `away_s` have passed at once."""

    away_s = 0.0

    def time(self) -> float:
        return super().time() + self.away_s


async def _line(write: Callable[[int], Awaitable[None]]) -> bytes:
    reader, (ours, theirs) = asyncio.StreamReader(), os.pipe()
    loop = asyncio.get_running_loop()
    with os.fdopen(ours, "rb") as pipe, os.fdopen(theirs, "wb"):
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        listening = asyncio.create_task(hear(reader.readline, LIMIT_S))
        try:
            await asyncio.sleep(0)  # it listens from now on
            await write(theirs)
            return await listening
        finally:
            transport.close()


def _away(loop: asyncio.AbstractEventLoop) -> None:
    assert isinstance(loop, Leaping)
    loop.away_s += 100 * LIMIT_S


async def _before(pipe: int) -> None:
    os.write(pipe, b"said\n")
    _away(asyncio.get_running_loop())


async def _after(pipe: int) -> None:
    _away(asyncio.get_running_loop())
    for _ in range(10):  # turns, in which the timers run
        await asyncio.sleep(0)
    os.write(pipe, b"said\n")


@pytest.mark.parametrize("when", [_before, _after])
def test_who_spoke_while_we_were_away_or_after_is_heard(when: Callable[[int], Awaitable[None]]) -> None:
    assert _run(_line(when)) == b"said\n"


async def test_who_says_nothing_is_silent_after_the_limit() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        await hear(asyncio.Event().wait, 0.2)
    assert loop.time() - began >= 0.19


def _run(main: Coroutine[object, object, bytes]) -> bytes:
    with asyncio.Runner(loop_factory=Leaping) as runner:
        return runner.run(main)
