"""The director's end of the connection to the relay: commands and their answers, and ExaBGP's events.

Must not know: what commands mean, processes. The protocol is described in relay.py.
Invariant: each command gets its own answer or an RhiError. Answers come in the order of the commands, so one
that was cancelled keeps its place: its late answer is nobody's. One in parts is waited for while they come.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vc5py.errors import RhiError
from vc5py.rhi.relay import PROTOCOL, SIGN_S

# ExaBGP answers within milliseconds, or within seconds while it works off thousands of routes.
ANSWER_S = 15.0
# No more counts of the time between two looks at the clock: this process may have been stopped.
STEP_S = 1.0
# A relay that answers none of so many signs hangs.
SILENT_SIGNS = 5
_SIGN = b'{"alive": true}\n'
HELLO_S = 2.0
_MAX_LINE = 1 << 25
# A relay of an earlier version breaks off amid an answer of which more than MAX_BACKLOG waits.
_MUCH = 1 << 16


class LinkLostError(RhiError):
    """The relay went away; ExaBGP may be alive."""


class RelayHangsError(LinkLostError):
    """It doesn't answer signs of life, which it does by itself."""


class NoAnswerError(RhiError):
    """ExaBGP hangs, or its relay can't pass the answer on, now or ever."""


class RelayBusyError(RhiError):
    """Another director holds the relay."""


class CommandRefusedError(RhiError):
    """ExaBGP answered `error`."""


@contextmanager
def inquiry(path: Path) -> Iterator[Callable[[str], list[str]]]:
    """Has commands carried out while all of this process waits; for before there is anything else to do.
    Raises RhiError, OSError, ValueError, and so does what it yields: not later than after a moment.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HELLO_S)
        connection.connect(str(path))
        with connection.makefile("rwb") as file:
            if json.loads(file.readline()).get("relay") != PROTOCOL:
                raise RelayBusyError(f"{path}: another director holds the routes")

            def ask(text: str) -> list[str]:
                file.write(_request(text, asks=True))
                file.flush()
                parts: list[str] = []
                while "answer" not in (message := json.loads(file.readline())):
                    parts += message.get("lines", ())
                return _lines(text, message, parts)

            yield ask


def _request(text: str, *, asks: bool = False) -> bytes:
    return json.dumps({"command": text, "parts": True} | ({"asks": True} if asks else {})).encode() + b"\n"


def _lines(text: str, answer: Mapping[str, Any], parts: list[str]) -> list[str]:
    if answer["answer"] != "done":
        raise CommandRefusedError(f"ExaBGP refuses: {text}")
    return [*parts, *answer["lines"]]


@dataclass(slots=True)
class _Due:
    """An answer that is waited for: what has come of it, and whether any has, for whomever."""

    answer: asyncio.Future[Mapping[str, Any]]
    parts: list[str] = field(default_factory=list)
    heard: bool = False

    async def wait(self) -> Mapping[str, Any] | None:
        """None where none comes for ANSWER_S in which this process ran."""
        clock = asyncio.get_running_loop().time
        left_s = ANSWER_S
        try:
            while not self.answer.done() and left_s > 0:
                began, self.heard = clock(), False
                await asyncio.wait({self.answer}, timeout=min(STEP_S, left_s))
                left_s = ANSWER_S if self.heard else left_s - min(clock() - began, STEP_S)
            return self.answer.result() if self.answer.done() else None
        finally:
            self.answer.cancel()  # a late one is nobody's


class Link:
    """Made by `connect`. `hello` is how the relay has introduced itself, `exabgp` ExaBGP's process id."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hello: Mapping[str, Any],
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.exabgp = int(hello["exabgp"])
        self._passes_parts = bool(hello.get("parts"))
        self._heeds_signs = bool(hello.get("signs"))
        self._unheard = 0
        self._signs: asyncio.Task[None] | None = None
        self._end: RhiError = LinkLostError("the relay has gone")
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._due: deque[_Due] = deque()
        self._lock = asyncio.Lock()
        self._listener = asyncio.create_task(self._listen(), name="rhi-link")

    @classmethod
    async def connect(cls, path: Path, on_event: Callable[[Mapping[str, Any]], None]) -> Link:
        """Raises RelayBusyError, or LinkLostError where no relay of our protocol answers."""
        try:
            async with asyncio.timeout(HELLO_S):
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
        return cls(reader, writer, hello, on_event)

    async def command(self, text: str) -> list[str]:
        """Have ExaBGP carry out one command; the lines of its answer."""
        async with self._lock:
            if self._listener.done():
                raise self._end
            if self._signs is None and self._heeds_signs:
                self._signs = asyncio.create_task(self._give_signs(), name="rhi-signs")
            due = _Due(asyncio.get_running_loop().create_future())
            self._due.append(due)
            self._writer.write(_request(text))
            answer = await due.wait()
        if answer is None:
            raise NoAnswerError(f"ExaBGP doesn't answer within {ANSWER_S:g} s: {text}")
        return _lines(text, answer, due.parts)

    async def _give_signs(self) -> None:
        """From the first command on, for who only connects may not get any further: relay.py. Ends the
        connection where the relay gives none. That is counted in turns: this process may be stopped.
        """
        while self._unheard < SILENT_SIGNS:
            if self._listener.done():
                return
            self._unheard += 1
            self._writer.write(_SIGN)
            await asyncio.sleep(SIGN_S)
        self._end = RelayHangsError(f"the relay gives no sign of life for {SILENT_SIGNS * SIGN_S:g} s")
        self._writer.transport.abort()

    async def lost(self) -> None:
        """Return when the connection has ended; raise RhiError where it ended by nonsense."""
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.result()

    async def close(self) -> None:
        """Whoever is cancelled in here has closed it too."""
        self._writer.transport.abort()
        tasks = {self._listener} if self._signs is None else {self._listener, self._signs}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()

    async def _listen(self) -> None:
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                self._message(json.loads(line))
            if len(line) > _MUCH and not self._passes_parts:
                self._end = NoAnswerError("the relay, of an earlier version, can't pass on so long an answer")
            if type(self._end) is not LinkLostError:
                raise self._end
        except (OSError, ValueError) as error:
            raise LinkLostError(f"the relay broke off: {error}") from error
        finally:
            for due in self._due:
                if not due.answer.done():
                    due.answer.set_exception(self._end)

    def _message(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"])
        elif "alive" in message:
            self._unheard = 0
        elif "answer" not in message:
            self._part(message["lines"])
        elif self._due and not (due := self._due.popleft()).answer.done():
            due.answer.set_result(message)

    def _part(self, lines: list[str]) -> None:
        """Of the answer that is next. Whoever waits, for it or for one behind it, sees that ExaBGP lives."""
        if self._due and not self._due[0].answer.done():
            self._due[0].parts += lines
        for due in self._due:
            due.heard = True
