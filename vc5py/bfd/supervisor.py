"""The director's end of BFD: keeps the BFD process running, tells it what is wanted, passes on what it finds.

Must not know: BGP, packets, and what `on_reachable` does with a neighbor that can't be reached.

Invariants. `on_reachable` is called with False only while a living process says so; without one nothing is
known, and a neighbor counts as reachable. The process outlives the director by `hold_s`, and a new director
takes it over with its sessions up. Without sessions there is no process.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vc5py.bfd import messages
from vc5py.bfd.child import STOP_S, Connection, GoneError, Host
from vc5py.bfd.messages import Wish
from vc5py.bfd.packet import Diagnostic
from vc5py.bfd.sessions import Status
from vc5py.model import IPAddress
from vc5py.offspring import Supervision
from vc5py.silence import hear

_log = logging.getLogger(__name__)

RETRY_MIN_S = 0.1
RETRY_MAX_S = 10.0
# While there may be a process that waits for us, and for no longer than the hold.
RETRY_ALIVE_S = 1.0
# The process reports every second; one that doesn't for so long hangs, unless it was us.
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
        self._host = Host(state_dir.absolute())
        self._on_reachable = on_reachable
        self._scheduling = scheduling
        self._wishes: dict[str, Wish] = {}
        self._hold_s = 0.0
        self._statuses: dict[str, Status] = {}
        self._unreachable: set[str] = set()
        self._report = Report()
        self._changed = asyncio.Event()
        self._had = False  # a process; it has a standby that may go on for it
        self._supervision = Supervision(
            "bfd", self._serve, first_s=RETRY_MIN_S, longest_s=RETRY_MAX_S, patience=self._patience
        )

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
        return {ip_address(neighbor): self._statuses.get(neighbor) for neighbor in self._wishes}

    def report(self) -> Report:
        return self._report

    async def run(self) -> None:
        """Until cancelled, which leaves the process alive for `hold_s`, or until `shutdown`."""
        await self._supervision.run()

    async def shutdown(self) -> None:
        """Takes all sessions administratively down; returns when the process has ended. Ends `run` too."""
        await self._supervision.end()
        await self._host.stop()

    # Supervision

    async def _serve(self) -> None:
        """Have a process while anything is wanted, and heed it."""
        if not self._wishes:
            await self._host.stop()
        while not self._wishes:
            self._changed.clear()
            await self._changed.wait()
        self._had = False
        connection = await self._host.attach(self._scheduling)
        self._had = True
        self._report = Report(scheduling=str(connection.hello.get("scheduling", "")))
        _log.info("bfd process pid=%d scheduling=%s", connection.process.pid, self._report.scheduling)
        try:
            await self._converse(connection)
        finally:
            self._forget_all()
            await connection.leave()

    def _patience(self) -> float:
        """How long no attempt may be made at most."""
        if not self._had and not self._host.lives():
            return math.inf
        return max(RETRY_MIN_S, min(RETRY_ALIVE_S, self._hold_s / 2))

    async def _converse(self, connection: Connection) -> None:
        """Until nothing is wanted any more. Raises RhiError when the process can't be talked to."""
        tasks = [
            asyncio.create_task(self._listen(connection), name="bfd-listen"),
            asyncio.create_task(self._tell(connection), name="bfd-tell"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _tell(self, connection: Connection) -> None:
        """What is wanted, as often as it changes; until nothing is."""
        while self._wishes:
            self._changed.clear()
            connection.writer.write(messages.wishes(self._wishes.values(), self._hold_s))
            await self._changed.wait()

    async def _listen(self, connection: Connection) -> None:
        while True:
            try:
                line = await hear(connection.reader.readline, SILENCE_S)
                if not line:
                    await connection.process.wait_gone(STOP_S)
                    raise GoneError("the BFD process has gone")
                self._heed(messages.parse_line(line))
            except TimeoutError as error:
                await self._host.kill(connection.process)
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
        before = self._statuses.get(status.neighbor)
        self._statuses[status.neighbor] = status
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
