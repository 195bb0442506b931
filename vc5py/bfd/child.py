"""The BFD process from outside: start it, find one that a former director left, talk to it, end it.

Must not know: what is said. Invariants: those of offspring.py; and nobody is believed but the process that
has the place.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vc5py import offspring
from vc5py.bfd import messages
from vc5py.errors import RhiError
from vc5py.offspring import Offspring, Place
from vc5py.silence import hear

START_S = 5.0
STOP_S = 2.0
HELLO_S = 2.0
# A standby goes on within milliseconds; one that doesn't for so long hangs, as what it stood behind did.
HEIR_S = 1.0
_POLL_S = 0.02
_CREDENTIALS = struct.Struct("=3i")


class GoneError(RhiError):
    """The process went away, hangs or talks nonsense."""


@dataclass(frozen=True, slots=True)
class Connection:
    """To a BFD process that has said its `hello`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: Offspring
    hello: Mapping[str, Any]

    async def end(self) -> None:
        """Ask the process to end, which takes its sessions down administratively; kill it otherwise."""
        self.writer.write(messages.line({"stop": True}))
        try:
            async with asyncio.timeout(STOP_S):
                while await self.reader.read(1 << 16):
                    pass
        except (OSError, TimeoutError):
            self.process.kill()
        finally:
            self.writer.close()
        await self.process.wait_gone(STOP_S)

    async def leave(self) -> None:
        """Let go of the process; it lives on. Returns when it can be seen that we have gone."""
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


class Host:
    """Where the process lives. Raises RhiError where `directory` can't be used."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "bfd.sock"
        self._place = Place(directory, "bfd")
        offspring.prepare(directory, self._socket)

    async def attach(self, scheduling: str) -> Connection:
        """To the process that lives, if it speaks as we do, else to a new one. Raises RhiError."""
        former = self._place.find()
        if former is not None:
            found = await self._connect_while_alive(former)
            if found is not None and found.hello.get("bfd") == messages.PROTOCOL:
                return found
            await (found.end() if found is not None else former.stop())
        return await self._start(scheduling)

    def lives(self) -> bool:
        """Whether there is a process."""
        return self._place.find() is not None

    async def kill(self, process: Offspring) -> None:
        """One that hangs. Its standby goes on; one that hangs too is killed, or it would keep the port."""
        heirs = _children(process.pid)
        process.kill()
        await process.wait_gone(STOP_S)
        for heir in heirs:
            if not await self._goes_on(heir):
                heir.kill()
                await heir.wait_gone(STOP_S)

    async def _goes_on(self, heir: Offspring) -> bool:
        clock = asyncio.get_running_loop().time
        end_at = clock() + HEIR_S
        while clock() < end_at and not heir.gone():
            living = self._place.find()
            if living is not None:
                return living.pid == heir.pid
            await asyncio.sleep(_POLL_S)
        return False

    async def stop(self) -> None:
        """End the process if one is there and has no other director."""
        with suppress(RhiError):
            while (process := self._place.find()) is not None:  # a killed one has a standby, once
                found = await self._connect(process)
                await (found.end() if found is not None else process.stop())
                await process.wait_gone(_POLL_S)
            self._place.clear()

    async def _start(self, scheduling: str) -> Connection:
        arguments = ("-P", "-m", "vc5py.bfd.process", str(self._socket), "--scheduling", scheduling)
        found = await self._connect_while_alive(self._place.spawn(arguments, {}))
        if found is None:
            raise RhiError(f"the BFD process doesn't start: {self._place.last_words()}")
        return found

    async def _connect_while_alive(self, process: Offspring) -> Connection | None:
        """None where it ends, hangs, or doesn't listen in time."""
        clock = asyncio.get_running_loop().time
        end_at = clock() + START_S
        while clock() < end_at:
            found = await self._connect(process)
            if found is not None:
                return found
            if await process.wait_gone(_POLL_S):
                return None
        return None

    async def _connect(self, process: Offspring) -> Connection | None:
        """None where it doesn't listen (yet). One that hangs is killed. Raises RhiError where it has another
        director.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=messages.MAX_LINE)
        except OSError:
            return None
        try:
            hello = await _hello(reader) if _peer(writer) == process.pid else None
        except (OSError, ValueError, TimeoutError):
            await self.kill(process)
            hello = None
        except BaseException:
            writer.close()
            raise
        if hello is not None and not hello.get("busy"):
            return Connection(reader, writer, process, hello)
        writer.close()
        if hello is not None:
            raise RhiError(f"{self._socket}: another director has the BFD sessions")
        return None


def _children(pid: int) -> list[Offspring]:
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                found.append(Offspring(int(child)))
    return found


async def _hello(reader: asyncio.StreamReader) -> Mapping[str, Any]:
    return messages.parse_line(await hear(reader.readline, HELLO_S))


def _peer(writer: asyncio.StreamWriter) -> int:
    """Who listens."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    return int(_CREDENTIALS.unpack(credentials)[0])
