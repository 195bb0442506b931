"""A second process behind the one that speaks BFD: it sleeps, and goes on in its place when that is killed.

It is forked, so everything is imported, every socket open and its priority the same; a pipe that only the
speaking process holds open tells that it has died. Standard library only. Must not know: sessions, sockets.

Invariants: it runs no line of the program before the speaking process is dead; it never outlives one that
ends in good order, or whose program has failed.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Standby:
    """As the speaking process sees it. `fd` becomes readable when it has died."""

    pid: int
    fd: int
    pipe: int

    def end(self) -> None:
        """It is gone when this returns, dead before or not."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pipe)
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Speaker:
    """As the standby sees it."""

    pipe: int

    def outlive(self) -> None:
        """Returns when it has died."""
        while os.read(self.pipe, 1):
            pass
        os.close(self.pipe)


def fork() -> Standby | Speaker:
    """In the speaking process, its standby; in the standby, whom to outlive. Raises OSError."""
    ours, theirs = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    if not pid:
        os.close(theirs)
        return Speaker(ours)
    os.close(ours)
    try:
        return Standby(pid, os.pidfd_open(pid), theirs)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(theirs)
        raise


def close_files(path: Path) -> None:
    """What this process has inherited of it."""
    wanted = path.resolve()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if fd.readlink() == wanted:
                os.close(int(fd.name))


def name(word: str) -> None:
    """What ps(1) and top(1) call this process, 15 characters of it."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(word)
