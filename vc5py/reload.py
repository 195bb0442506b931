"""The configuration file into force, at the start and again and again.

Must not know: how a configuration is put into force. Invariants: all of the file is read and judged before
anything is touched; one reload at a time, and one that is asked for meanwhile begins afterwards, so that it
sees the file as it was when it was asked for, or newer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vc5py.control.interface import ReloadRefusedError, ReloadReport
from vc5py.core.diff import diff
from vc5py.errors import ConfigError, Vc5Error
from vc5py.loading import Loaded, load
from vc5py.model import Config
from vc5py.snapshot import ReloadSnapshot

_log = logging.getLogger(__name__)


Apply = Callable[[Config], Awaitable[tuple[str, ...]]]


class Reloader:
    """Loads the file again when asked. `apply` puts a configuration into force all or not at all, and returns
    notes for people; it raises Vc5Error where it can't.
    """

    def __init__(self, loaded: Loaded, apply: Apply) -> None:
        self._loaded = loaded
        self._apply = apply
        self._successful = True
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[ReloadReport] | None = None
        self._tasks: set[asyncio.Task[ReloadReport]] = set()

    @property
    def loaded(self) -> Loaded:
        return self._loaded

    def snapshot(self) -> ReloadSnapshot:
        return ReloadSnapshot(str(self._loaded.file), self._successful, self._loaded.at)

    async def reload(self) -> ReloadReport:
        """Raises ConfigError, ReloadRefusedError. All that ask before one begins share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._in_turn(), name="reload")
            self._tasks.add(self._next)
            self._next.add_done_callback(self._tasks.discard)
        return await asyncio.shield(self._next)

    async def stop(self) -> None:
        """Ends whatever is under way."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _in_turn(self) -> ReloadReport:
        async with self._lock:
            self._next = None
            try:
                report = await self._reload()
            except BaseException:
                self._successful = False
                raise
            self._successful = True
            return report

    async def _reload(self) -> ReloadReport:
        try:
            fresh = await asyncio.to_thread(load, self._loaded.file, self._loaded.own)
        except ConfigError as error:
            for diagnostic in error.diagnostics:
                _log.error("reload failed finding=%s", diagnostic)
            raise
        changes = await asyncio.to_thread(diff, self._loaded.config, fresh.config)
        for change in changes:
            later = " effective=next-start" if change.restart else ""
            _log.info("reload %s what=%r detail=%r%s", change.kind, change.what, change.detail, later)
        try:
            notes = await self._apply(fresh.config)
        except Vc5Error as error:
            _log.error("reload failed error=%s", error)
            raise ReloadRefusedError(f"{error}; the configuration in force is as before") from error
        self._loaded = fresh
        for line in (*fresh.warnings, *notes):
            _log.warning("reload note=%r", str(line))
        _log.info("reloaded file=%s changes=%d", fresh.file, len(changes))
        return ReloadReport(changes, fresh.warnings, notes)
