"""The director's end of the connection to the relay: commands and their answers, and ExaBGP's events.

Must not know: what commands mean, processes. The protocol is described in relay.py.
Invariant: each command gets its own answer or an RhiError. Answers come in the order of the commands, so one
that was cancelled keeps its place: its late answer is nobody's.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vc5py.errors import RhiError
from vc5py.rhi.relay import PROTOCOL

# ExaBGP answers within milliseconds, or within seconds while it works off thousands of routes.
ANSWER_S = 15.0
_HELLO_S = 2.0
_MAX_LINE = 1 << 25


class LinkLostError(RhiError):
    """The relay went away; ExaBGP may be alive."""


class NoAnswerError(RhiError):
    """ExaBGP hangs."""


class RelayBusyError(RhiError):
    """Another director holds the relay."""


class CommandRefusedError(RhiError):
    """ExaBGP answered `error`."""


class Link:
    """Made by `connect`. `exabgp` is ExaBGP's process id."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exabgp: int,
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.exabgp = exabgp
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._due: deque[asyncio.Future[Mapping[str, Any]]] = deque()
        self._lock = asyncio.Lock()
        self._listener = asyncio.create_task(self._listen(), name="rhi-link")

    @classmethod
    async def connect(cls, path: Path, on_event: Callable[[Mapping[str, Any]], None]) -> Link:
        """Raises RelayBusyError, or LinkLostError where no relay of our protocol answers."""
        try:
            async with asyncio.timeout(_HELLO_S):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE)
                try:
                    hello = json.loads(await reader.readline())
                except BaseException:
                    writer.close()
                    raise
        except (OSError, TimeoutError, ValueError) as error:
            raise LinkLostError(f"{path}: no relay answers: {error}") from error
        if hello.get("relay") != PROTOCOL or hello.get("exabgp", 0) <= 1:
            writer.close()
            if hello.get("busy"):
                raise RelayBusyError(f"{path}: another director holds the routes")
            raise LinkLostError(f"{path}: the relay speaks another protocol")
        return cls(reader, writer, int(hello["exabgp"]), on_event)

    async def command(self, text: str) -> list[str]:
        """Have ExaBGP carry out one command; the lines of its answer."""
        async with self._lock:
            if self._listener.done():
                raise LinkLostError("the relay has gone")
            due: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
            self._due.append(due)
            self._writer.write(json.dumps({"command": text}).encode() + b"\n")
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await due
            except TimeoutError as error:
                raise NoAnswerError(f"ExaBGP doesn't answer within {ANSWER_S:g} s: {text}") from error
        if answer["answer"] != "done":
            raise CommandRefusedError(f"ExaBGP refuses: {text}")
        return [str(line) for line in answer["lines"]]

    async def lost(self) -> None:
        """Return when the connection has ended; raise RhiError where it ended by nonsense."""
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.result()

    async def close(self) -> None:
        """Whoever is cancelled in here has closed it too."""
        self._writer.transport.abort()
        self._listener.cancel()
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.exception()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._message(json.loads(line))
        except (OSError, ValueError) as error:
            raise LinkLostError(f"the relay broke off: {error}") from error
        finally:
            for due in self._due:
                if not due.done():
                    due.set_exception(LinkLostError("the relay has gone"))

    def _message(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"])
        elif self._due and not (due := self._due.popleft()).done():
            due.set_result(message)
