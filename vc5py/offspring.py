"""Processes that outlive the director: started apart from it, found again by the next one, ended for certain.

Must not know: what such a process does and what is said to it; asks nobody but the kernel.

Invariants. At most one process of a place: it claims the place's file before it becomes what it is to be
(claim.py), and of two that are started at a time one ends at once. Which process that is, the kernel says,
never a file; it is signalled and awaited through a pidfd, so never another that was given its number. It has
a session of its own and no open files of ours: neither a Ctrl-C nor the death of the director reaches it.
Where a wait is cancelled, the next `find` finds what was started.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import signal
import sys
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vc5py import claim
from vc5py.errors import RhiError

log = logging.getLogger(__name__)

STOP_S = 3.0
_UNIX_PATH_MAX = 107  # sun_path less its NUL, unix(7)
_SUFFIX_MAX = 8  # a process binds to "<socket>.<pid>" first


class Offspring:
    """A process that we, or a director before us, started. `pid` is its number."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is no such process."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._pidfd)

    def gone(self) -> bool:
        """Whether it has ended. A child of ours is then waited for."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(0):
            return False
        with suppress(ChildProcessError):  # another's child, or waited for already
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        return True

    async def wait_gone(self, timeout_s: float) -> bool:
        """Whether it has ended, or does so within the time."""
        if self.gone():
            return True
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        fd = os.dup(self._pidfd)  # a loop knows one reader of a file
        try:
            loop.add_reader(fd, ended.set)
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self.gone()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL. Returns when it has gone; RhiError where it can't be killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            if await self.wait_gone(STOP_S):
                return
        raise RhiError(f"process {self.pid} can't be killed")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


class Place:
    """Where one process lives: `claim` is the file that it claims, `log` takes what it prints."""

    def __init__(self, directory: Path, name: str) -> None:
        self.claim = directory / f"{name}.pid"
        self.log = directory / f"{name}.log"
        self._ours: Offspring | None = None

    def find(self) -> Offspring | None:
        """Who lives here. One that we started counts before it has its claim."""
        if self._ours is not None and not self._ours.gone():
            return self._ours
        self._ours = None
        pid = claim.holder(self.claim)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            found = Offspring(pid)
            if claim.holder(self.claim) == pid:
                return found
        return None

    def spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> Offspring:
        """Start this Python with the arguments `command`. By hand: asyncio and subprocess would end it with
        us. Raises RhiError.
        """
        arguments = [sys.executable, "-I", "-S", claim.__file__, str(self.claim), sys.executable, *command]
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawn(
                sys.executable,
                arguments,
                {"PATH": os.environ.get("PATH", os.defpath), **environment},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.log), log_flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
            )
        except OSError as error:
            raise RhiError(f"can't start a process: {error}") from error
        self._ours = Offspring(pid)
        return self._ours

    def clear(self) -> None:
        """Leave nothing but the log, where nobody lives here."""
        claim.discard(self.claim)

    def last_words(self) -> str:
        """The last line of the log, and where to find the rest."""
        try:
            line = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
        except OSError:
            line = ""
        return f"{line} (see {self.log})"


def prepare(directory: Path, socket: Path) -> None:
    """Make a state directory, for its owner only, where a process can listen on `socket`. Raises RhiError."""
    if len(os.fsencode(socket)) + _SUFFIX_MAX > _UNIX_PATH_MAX:
        raise RhiError(f"{directory}: the path is too long for a Unix socket in it")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RhiError(f"{directory}: can't make the state directory: {error.strerror}") from error


class Supervision:
    """Runs `serve`, and again when it ends or fails: `first_s` later, then ever later, up to `longest_s`; and
    never later than `patience` says, for there may be somebody who waits for us only so long. What fails for
    the same reason again is logged as often as without that.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[], Awaitable[None]],
        *,
        first_s: float,
        longest_s: float,
        patience: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._name = name
        self._serve = serve
        self._first_s = first_s
        self._longest_s = longest_s
        self._patience = patience
        self._worker: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled, or until `end`. At most one `serve` at a time, whoever is impatient."""
        await self.end()
        worker = self._worker = asyncio.create_task(self._again_and_again(), name=f"{self._name}-supervise")
        try:
            await asyncio.wait({worker})
        finally:
            worker.cancel()
            await asyncio.wait({worker})
        if not worker.cancelled():
            worker.result()

    async def end(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})

    async def _again_and_again(self) -> None:
        retry_s = self._first_s
        told, quiet_until = None, 0.0
        clock = asyncio.get_running_loop().time
        while True:
            started, reason = clock(), None
            try:
                await self._serve()
            except (RhiError, OSError) as error:
                reason = str(error) or type(error).__name__
            if clock() - started > self._longest_s:
                retry_s = self._first_s
            wait_s = min(retry_s, self._patience())
            if reason is not None and (reason != told or clock() >= quiet_until):
                log.warning("%s interrupted reason=%s retry_s=%g", self._name, reason, wait_s)
                told, quiet_until = reason, clock() + retry_s
            await asyncio.sleep(wait_s)
            retry_s = min(2 * retry_s, self._longest_s)
