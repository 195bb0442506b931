"""The sharing process from outside: start it, talk to it, let go of it, end it, whoever has started it.

Must not know: what is said. Invariants: those of offspring.py; a process is started only where none is left,
and it claims the place, so that no two share the flows of one balancer. It has nothing of ours but the files
that it is given, one end of a socket, and its log; the director's death reaches it by that socket alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vc5py import claim
from vc5py.offspring import Offspring, Place
from vc5py.sharer_messages import MAX_LINE

PROGRAM = ("-P", "-m", "vc5py.sharer")
END_S = 5.0  # what a process that has closed its output may take to end
_WORDS = 200


@dataclass(frozen=True, slots=True)
class Child:
    """A process that we have started, and our end of the socket that is its standard input and output."""

    process: Offspring
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def tell(self, line: str) -> None:
        self.writer.write(line.encode() + b"\n")

    def leave(self) -> None:
        """Let go of the process, which goes on by itself for as long as it was told."""
        self.writer.transport.abort()

    async def how_it_ended(self) -> str:
        """For people; asked when it says nothing any more, and before it is waited for."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        pidfd = os.pidfd_open(self.process.pid)
        try:
            loop.add_reader(pidfd, ended.set)
            async with asyncio.timeout(END_S):
                await ended.wait()
        except TimeoutError:
            return "talks no more"
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return _how_ended(self.process.pid)


def _how_ended(pid: int) -> str:
    """A child of ours, which can still be waited for."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return "ended"
    by_itself = found.si_code == os.CLD_EXITED
    return f"{'ended with status' if by_itself else 'was killed by signal'} {found.si_status}"


class Host:
    """Where the process lives: `directory` must be there."""

    def __init__(self, directory: Path) -> None:
        self._place = Place(directory.absolute(), "sharer")
        self._ours: Offspring | None = None

    def _find(self) -> Offspring | None:
        """One that we have started counts before it has its claim."""
        if self._ours is not None and not self._ours.gone():
            return self._ours
        self._ours = None
        return self._place.find()

    async def end(self) -> None:
        """The process, ours or a former director's, where there is one. Raises RhiError, OSError."""
        while (process := self._find()) is not None:
            await process.stop()

    async def clear(self) -> None:
        """End it, and leave nothing but its log. Raises RhiError, OSError."""
        await self.end()
        self._place.clear()

    async def start(self, files: Iterable[int]) -> Child:
        """Another one than was there before; it has `files` by the same numbers. Raises RhiError, OSError."""
        await self.end()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = self._ours = Offspring(self._spawn(theirs.fileno(), files))
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        return Child(process, reader, writer)

    def _spawn(self, theirs: int, files: Iterable[int]) -> int:
        """By hand: asyncio and subprocess would end it with us."""
        place = self._place
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", claim.__file__, str(place.claim), sys.executable, *PROGRAM],
            {"PATH": os.environ.get("PATH", os.defpath)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, 0),
                (os.POSIX_SPAWN_DUP2, theirs, 1),
                (os.POSIX_SPAWN_OPEN, 2, str(place.log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                *((os.POSIX_SPAWN_DUP2, file, file) for file in files),  # which lets it be inherited
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM],
        )

    def last_words(self) -> str:
        """The last line of its log, which begins anew with each process."""
        try:
            return self._place.log.read_text(errors="replace").strip().rpartition("\n")[2][:_WORDS]
        except OSError:
            return ""
