"""The director's end of BFD: keeps the BFD process running, tells it what is wanted, passes on what it finds.

Must not know: BGP, packets, and what `on_reachable` does with a neighbor that can't be reached.

Invariants. `on_reachable` is called with False only while a living process says so; without one nothing is
known, and a neighbor counts as reachable. The process outlives the director by `hold_s`, and a new director
takes it over with its sessions up. Without sessions there is no process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vc5py.bfd import child, messages
from vc5py.bfd.child import Connection, Files, GoneError
from vc5py.bfd.messages import Wish
from vc5py.bfd.packet import Diagnostic
from vc5py.bfd.sessions import Status
from vc5py.errors import RhiError
from vc5py.model import IPAddress

_log = logging.getLogger(__name__)

RETRY_MIN_S = 0.1
RETRY_MAX_S = 10.0
# The process reports every second; one that doesn't for so long hangs.
SILENCE_S = 10.0

OnReachable = Callable[[IPAddress, bool], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What the process says of itself. `dropped`: by the kernel, for their TTL or for lack of room. `late_s`:
    how late the last second's latest wake-up was. `errors`: why a port can't be listened on, by family.
    """

    scheduling: str = ""
    rejects: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    send_errors: int = 0
    late_s: float = 0.0
    errors: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Wants a session with each neighbor of `configure`; `run` sees to it. Raises RhiError where `state_dir`
    can't be used. `scheduling` is what the process is to ask for: fifo, nice, normal.
    """

    def __init__(self, state_dir: Path, on_reachable: OnReachable, *, scheduling: str = "fifo") -> None:
        self._files = Files(state_dir.absolute())
        self._on_reachable = on_reachable
        self._scheduling = scheduling
        self._wishes: dict[str, Wish] = {}
        self._hold_s = 0.0
        self._statuses: dict[str, tuple[Status, float]] = {}
        self._unreachable: set[str] = set()
        self._report = Report()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._files.prepare()

    def configure(self, wishes: Mapping[IPAddress, Wish], hold_s: float) -> None:
        """From now on exactly these; sessions that stay are told their new settings and stay up."""
        wanted = {str(neighbor): wish for neighbor, wish in wishes.items()}
        if (wanted, hold_s) == (self._wishes, self._hold_s):
            return
        self._wishes, self._hold_s = wanted, hold_s
        for neighbor in self._statuses.keys() - wanted.keys():
            self._forget(neighbor)
        self._changed.set()

    def sessions(self) -> dict[IPAddress, Status | None]:
        """Every wanted session; None: nothing is known of it at the moment."""
        return {ip_address(neighbor): self._status(neighbor) for neighbor in self._wishes}

    def _status(self, neighbor: str) -> Status | None:
        """As it was told, but as old as it is now."""
        if neighbor not in self._statuses:
            return None
        status, told_at = self._statuses[neighbor]
        return replace(status, age_s=status.age_s + time.monotonic() - told_at)

    def report(self) -> Report:
        return self._report

    async def run(self) -> None:
        """Until cancelled, which leaves the process alive for `hold_s`, or until `shutdown`."""
        worker = self._worker = asyncio.create_task(self._supervise(), name="bfd-supervise")
        try:
            await asyncio.wait({worker})
        finally:
            worker.cancel()
            await asyncio.wait({worker})
        if not worker.cancelled():
            worker.result()

    async def shutdown(self) -> None:
        """Takes all sessions administratively down; returns when the process has ended. Ends `run` too."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        await child.stop(self._files)

    # Supervision

    async def _supervise(self) -> None:
        retry_s = RETRY_MIN_S
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                await self._serve()
            except (RhiError, OSError) as error:
                _log.warning("bfd interrupted reason=%s retry_s=%g", error, retry_s)
            if clock() - started > RETRY_MAX_S:
                retry_s = RETRY_MIN_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _serve(self) -> None:
        """Have a process while anything is wanted, and heed it."""
        if not self._wishes:
            await child.stop(self._files)
        while not self._wishes:
            self._changed.clear()
            await self._changed.wait()
        process = await child.attach(self._files, self._scheduling)
        self._report = Report(scheduling=str(process.hello.get("scheduling", "")))
        _log.info("bfd process pid=%d scheduling=%s", process.pid, self._report.scheduling)
        tasks = [
            asyncio.create_task(self._listen(process), name="bfd-listen"),
            asyncio.create_task(self._tell(process), name="bfd-tell"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await child.leave(process)
            self._forget_all()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _tell(self, process: Connection) -> None:
        """What is wanted, as often as it changes; until nothing is."""
        while self._wishes:
            self._changed.clear()
            process.writer.write(messages.wishes(self._wishes.values(), self._hold_s))
            await self._changed.wait()

    async def _listen(self, process: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    line = await process.reader.readline()
                if not line:
                    raise GoneError("the BFD process has gone")
                self._heed(messages.parse_line(line))
            except TimeoutError as error:
                child.kill(process.pid)
                raise GoneError(f"the BFD process says nothing for {SILENCE_S:g} s") from error
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise GoneError(f"the BFD process talks nonsense: {error!r}") from error

    def _heed(self, message: Mapping[str, Any]) -> None:
        for item in (*message.get("changed", ()), *message.get("status", ())):
            status = messages.parse_status(item)
            if status.neighbor in self._wishes:
                self._learn(status)
        if "status" in message:
            self._heed_report(message)

    def _heed_report(self, message: Mapping[str, Any]) -> None:
        errors = {str(family): str(why) for family, why in message["errors"].items()}
        for family in errors.keys() - self._report.errors.keys():
            _log.error("bfd can't listen port=3784 family=%s reason=%s", family, errors[family])
        self._report = Report(
            self._report.scheduling,
            {str(reason): int(count) for reason, count in message["rejects"].items()},
            int(message["dropped"]),
            int(message["send_errors"]),
            float(message["late_s"]),
            errors,
        )

    # Sessions

    def _learn(self, status: Status) -> None:
        before, _ = self._statuses.get(status.neighbor, (None, 0.0))
        self._statuses[status.neighbor] = (status, time.monotonic())
        if before is None or before.transitions != status.transitions:
            _log_session(before, status)
        if status.reachable is (status.neighbor in self._unreachable):
            self._set_reachable(status.neighbor, status.reachable)

    def _set_reachable(self, neighbor: str, reachable: bool) -> None:
        (self._unreachable.discard if reachable else self._unreachable.add)(neighbor)
        self._on_reachable(ip_address(neighbor), reachable)

    def _forget(self, neighbor: str) -> None:
        self._statuses.pop(neighbor, None)
        if neighbor in self._unreachable:
            self._set_reachable(neighbor, True)

    def _forget_all(self) -> None:
        for neighbor in list(self._statuses):
            self._forget(neighbor)
        self._report = Report()


def _log_session(before: Status | None, status: Status) -> None:
    """What has to do with being up; attempts repeat for ever."""
    was = before.state if before is not None else "unknown"
    why = Diagnostic(status.diagnostic).name.lower().replace("_", "-")
    level = logging.INFO if "up" in (status.state, was) or not status.reachable else logging.DEBUG
    _log.log(level, "bfd neighbor=%s state=%s was=%s why=%s", status.neighbor, status.state, was, why)
