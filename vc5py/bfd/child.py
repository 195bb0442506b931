"""The BFD process from outside: start it, find one that a former director left, talk to it, end it.

Must not know: what is said. Invariants: it has a session of its own and no open files of ours, so neither a
Ctrl-C nor the death of the director reaches it. Which process it is, the kernel says (SO_PEERCRED); it is
signalled through a pidfd.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vc5py.bfd import messages
from vc5py.errors import RhiError

START_S = 5.0
STOP_S = 2.0
HELLO_S = 2.0
_POLL_S = 0.02
_UNIX_PATH_MAX = 107  # sun_path less its NUL, unix(7)
_SUFFIX_MAX = 8  # the process binds to "<socket>.<pid>" first
_CREDENTIALS = struct.Struct("=3i")


class GoneError(RhiError):
    """The process went away, hangs or talks nonsense."""


@dataclass(frozen=True, slots=True)
class Connection:
    """To a BFD process that has said its `hello`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int
    hello: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Files:
    """What is in the file system."""

    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "bfd.sock"

    @property
    def log(self) -> Path:
        return self.directory / "bfd.log"

    def prepare(self) -> None:
        """Make the directory, for its owner only. Raises RhiError."""
        if len(os.fsencode(self.socket)) + _SUFFIX_MAX > _UNIX_PATH_MAX:
            raise RhiError(f"{self.directory}: the path is too long for a Unix socket in it")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RhiError(f"{self.directory}: can't make the state directory: {error.strerror}") from error


async def attach(files: Files, scheduling: str) -> Connection:
    """To the process that lives, if it speaks as we do, else to a new one. Raises RhiError."""
    found = await _connect(files)
    if found is not None and found.hello.get("bfd") == messages.PROTOCOL:
        return found
    if found is not None:
        await end(found)
    return await _start(files, scheduling)


async def stop(files: Files) -> None:
    """End the process if one is there and has no other director."""
    with suppress(RhiError):
        found = await _connect(files)
        if found is not None:
            await end(found)


async def end(connection: Connection) -> None:
    """Ask it to end, which takes its sessions administratively down; kill it where it doesn't."""
    connection.writer.write(messages.line({"stop": True}))
    try:
        async with asyncio.timeout(STOP_S):
            while await connection.reader.read(1 << 16):
                pass
    except (OSError, TimeoutError):
        kill(connection.pid)
    finally:
        connection.writer.close()
    reap(connection.pid)


async def leave(connection: Connection) -> None:
    """Let go of it; it lives on. Returns when it can be seen that we have gone."""
    connection.writer.close()
    with suppress(OSError):
        await connection.writer.wait_closed()
    reap(connection.pid)


def kill(pid: int) -> None:
    with suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def reap(pid: int) -> bool:
    """Whether a child of ours has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False  # a former director's


async def _connect(files: Files) -> Connection | None:
    """None where nobody listens. One that hangs is killed. Raises RhiError where it has another director."""
    try:
        reader, writer = await asyncio.open_unix_connection(files.socket, limit=messages.MAX_LINE)
    except OSError:
        return None
    pid = _peer(writer)
    try:
        async with asyncio.timeout(HELLO_S):
            hello = messages.parse_line(await reader.readline())
    except (OSError, ValueError, TimeoutError):
        kill(pid)
        writer.close()
        return None
    except BaseException:
        writer.close()
        raise
    if hello.get("busy"):
        writer.close()
        raise RhiError(f"{files.socket}: another director has the BFD sessions")
    return Connection(reader, writer, pid, hello)


def _peer(writer: asyncio.StreamWriter) -> int:
    """Who listens."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    return int(_CREDENTIALS.unpack(credentials)[0])


async def _start(files: Files, scheduling: str) -> Connection:
    pid = _spawn(files, scheduling)
    clock = asyncio.get_running_loop().time
    end_at = clock() + START_S
    while clock() < end_at and not reap(pid):
        await asyncio.sleep(_POLL_S)
        found = await _connect(files)
        if found is not None and found.pid == pid:
            return found
        if found is not None:
            found.writer.close()
    raise RhiError(f"the BFD process doesn't start: {_last_line(files.log)} (see {files.log})")


def _spawn(files: Files, scheduling: str) -> int:
    """By hand: asyncio and subprocess would end it with us."""
    arguments = ("-P", "-m", "vc5py.bfd.process", str(files.socket), "--scheduling", scheduling)
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *arguments],
            {"PATH": os.environ.get("PATH", os.defpath)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(files.log), log_flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
    except OSError as error:
        raise RhiError(f"can't start the BFD process: {error}") from error


def _last_line(log: Path) -> str:
    try:
        return log.read_text(errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""
