"""The ExaBGP process and its files: start it, find one that a former director left, end it.

Must not know: BGP, routes, ExaBGP's grammar, the relay's protocol.

Invariants: ExaBGP has a session of its own and no open files of ours, so neither a Ctrl-C nor the death of
the director reaches it. A process is signalled through a pidfd, and one found by the pid file only if its
command line names our configuration: a pid that was given away again is left alone.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vc5py.errors import RhiError
from vc5py.rhi.relay import HOLD_SUFFIX

STOP_S = 3.0
MAX_LOG = 1 << 20
_UNIX_PATH_MAX = 107  # sun_path less its NUL, unix(7)
_RELAY_SUFFIX_MAX = 8  # the relay binds to "<socket>.<pid>" first


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Everything of one speaker that lives in the file system."""

    directory: Path

    @property
    def configuration(self) -> Path:
        return self.directory / "exabgp.conf"

    @property
    def pid(self) -> Path:
        return self.directory / "exabgp.pid"

    @property
    def log(self) -> Path:
        return self.directory / "exabgp.log"

    @property
    def socket(self) -> Path:
        return self.directory / "relay.sock"

    @property
    def hold(self) -> Path:
        """Where the relay looks for how long it is to keep the routes."""
        return self.socket.with_suffix(HOLD_SUFFIX)

    def prepare(self) -> None:
        """Make the directory, for its owner only."""
        if len(os.fsencode(self.socket)) + _RELAY_SUFFIX_MAX > _UNIX_PATH_MAX:
            raise RhiError(f"{self.directory}: the path is too long for a Unix socket in it")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RhiError(f"{self.directory}: can't make the state directory: {error.strerror}") from error

    def written_configuration(self) -> str | None:
        try:
            return self.configuration.read_text()
        except OSError:
            return None

    def write(self, configuration: str, hold_s: float) -> None:
        """What ExaBGP and the relay read, for the eyes of their user only: there may be passwords in it."""
        for path, text in ((self.configuration, configuration), (self.hold, f"{hold_s:g}\n")):
            fresh = path.with_name(f"{path.name}.new")
            try:
                fresh.unlink(missing_ok=True)
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(text)
                fresh.replace(path)
            except OSError as error:
                raise RhiError(f"{path}: can't be written: {error.strerror}") from error

    def trim_log(self) -> None:
        """Bound the log. ExaBGP appends, so it goes on at the new end."""
        if self.log.exists() and self.log.stat().st_size > MAX_LOG:
            os.truncate(self.log, 0)

    def last_log_line(self) -> str:
        try:
            return self.log.read_text(errors="replace").strip().rpartition("\n")[2]
        except OSError:
            return ""

    def remove(self) -> None:
        for path in (self.socket, self.pid, self.configuration, self.hold):
            path.unlink(missing_ok=True)


class Child:
    """A living ExaBGP, started by this director or by a former one."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def close(self) -> None:
        """Let go of the process; it lives on."""
        os.close(self._pidfd)

    async def wait_gone(self, timeout_s: float) -> bool:
        """Whether the process has ended, or does so within the time."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._pidfd, gone.set)
        try:
            async with asyncio.timeout(timeout_s):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        self._reap()
        return True

    def reload(self) -> None:
        """Have it read its configuration again."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1)

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL. Returns when it has gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass
            if await self.wait_gone(STOP_S):
                return
        raise RhiError(f"ExaBGP, process {self.pid}, can't be killed")

    def _reap(self) -> None:
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # a former director's child


def program() -> Path:
    """The script that runs ExaBGP; RhiError where this Python environment has no ExaBGP."""
    path = Path(sys.executable).parent / "exabgp"
    if not path.is_file():
        raise RhiError(f"{path}: no such program; install ExaBGP 5 into this Python environment")
    return Path(__file__).with_name("exabgp_main.py")


def user() -> str:
    """The name of the user we run as."""
    return pwd.getpwuid(os.geteuid()).pw_name


def start(files: StateFiles, exabgp: Path, environment: Mapping[str, str]) -> Child:
    """Start ExaBGP with the files that are written. Spawned by hand: asyncio and subprocess would end it
    with us. `-P`: what is beside the script is not for it to import.
    """
    try:
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", str(exabgp), "server", str(files.configuration)],
            {"PATH": os.environ.get("PATH", os.defpath), **environment},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(files.log), log_flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        files.pid.write_text(f"{pid}\n")
    except OSError as error:
        raise RhiError(f"can't start ExaBGP: {error}") from error
    return Child(pid)


def find(files: StateFiles) -> Child | None:
    """The ExaBGP that the pid file tells of, if it still lives."""
    try:
        pid = int(files.pid.read_text())
        child = Child(pid)
    except (OSError, ValueError):
        return None
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        arguments = []
    if os.fsencode(files.configuration) in arguments:
        return child
    child.close()
    return None
