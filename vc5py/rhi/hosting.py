"""The ExaBGP that the speaker talks to: found alive and taken over, reconfigured, or started anew.

Must not know: routes, neighbors, what is in a configuration beyond whether it can be taken over by a reload.

Invariants: there is at most one ExaBGP of a state directory. One that can be made into what is wanted without
an end of its sessions is never replaced, nor is one while what another would need can't be written. One that
is adopted reads its configuration again: a director may have died after it wrote that. Cancelled at any
moment, no connection stays behind that would keep the relay's next director out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vc5py.errors import RhiError
from vc5py.offspring import Offspring
from vc5py.rhi import child, grammar, relay
from vc5py.rhi.child import StateFiles
from vc5py.rhi.link import HELLO_S, Link, LinkLostError, NoAnswerError, RelayHangsError, inquiry

log = logging.getLogger(__name__)

START_S = 15.0
_POLL_S = 0.05
# A relay that died is replaced by ExaBGP within this time. One that lives and says nothing for so long is
# killed; where that doesn't help, ExaBGP is replaced.
_RELAY_S = 5.0
_TURNS = 3

OnEvent = Callable[[Mapping[str, Any]], None]


class Host:
    """Raises RhiError when there is no ExaBGP or `state_dir` can't be used."""

    def __init__(self, state_dir: Path, on_event: OnEvent) -> None:
        self._files = StateFiles(state_dir.absolute())
        self._place = self._files.place()
        self._on_event = on_event
        self._exabgp = child.program()
        self._behind = ""
        self._files.prepare()

    @property
    def relay_command(self) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", relay.__file__, str(self._files.socket))

    async def attach(self, text: str, hold_s: float) -> Link:
        """A connection to an ExaBGP with this configuration: the living one if it can be made so, else a new
        one in its place. It's the caller's to close.
        """
        former = self._place.find()
        if former is not None:
            link = await self._connect_while_alive(former, _RELAY_S)
            if link is None and self._end_relay():
                link = await self._connect_while_alive(former, _RELAY_S)
            if link is not None and await self._adopt(link, text, hold_s):
                return link
        await self.stop()
        return await self._start(text, hold_s)

    def former_lives(self) -> bool:
        """Whether there is an ExaBGP of ours already."""
        return self._place.find() is not None

    def former_configuration(self) -> str | None:
        """That of an ExaBGP of ours that is there already."""
        return self._files.written_configuration() if self.former_lives() else None

    def inquiry(self) -> AbstractContextManager[Callable[[str], list[str]]]:
        """Asks it, before there is anything else to do (link.py)."""
        return inquiry(self._files.socket)

    async def reconfigure(self, link: Link, text: str, hold_s: float) -> bool:
        """Have the living ExaBGP take over another configuration; whether it can. Sessions with neighbors
        that don't change stay up.

        By a command, not by the signal: that would end an ExaBGP which doesn't heed it yet, and may be lost.
        Where it can't be written, a living ExaBGP goes on with what it has (`is_behind`).
        """
        before = self._files.written_configuration()
        if before is None:
            return False
        self._write_if_possible(text, hold_s)
        if not grammar.reloadable(before, self.relay_command):
            return self.is_behind
        await link.command(grammar.RELOAD)
        for _ in range(_TURNS):  # it reads the file between two turns
            await link.command(grammar.NOTHING)
        if not self.is_behind:
            log.info("exabgp reconfigured pid=%d", link.exabgp)
        return True

    @property
    def is_behind(self) -> bool:
        """Whether ExaBGP has another configuration than it should, because that couldn't be written."""
        return bool(self._behind)

    def _write_if_possible(self, text: str, hold_s: float) -> None:
        behind, self._behind = self._behind, ""
        try:
            self._files.write(text, hold_s)
        except RhiError as error:
            self._behind = str(error)
        if self._behind and self._behind != behind:
            log.error("exabgp goes on with its former configuration reason=%s", self._behind)

    async def connect(self) -> Link | None:
        """To whatever ExaBGP there is; None where there is none."""
        try:
            return await Link.connect(self._files.socket, self._on_event)
        except LinkLostError:
            return None

    async def stop(self) -> None:
        """End ExaBGP, if there is one."""
        exabgp = self._place.find()
        if exabgp is not None:
            await exabgp.stop()
            log.info("exabgp stopped pid=%d", exabgp.pid)

    async def mend(self, error: Exception) -> None:
        """Whoever hangs by this is ended: the relay alone, if it's that; no session ends with it."""
        if isinstance(error, RelayHangsError):
            self._end_relay()
        elif isinstance(error, NoAnswerError):
            await self.stop()

    def _end_relay(self) -> bool:
        """Kill the relay; ExaBGP starts another. Whether there was one."""
        exabgp = self._place.find()
        relays = child.relays(exabgp.pid) if exabgp is not None else []
        for one in relays:
            one.kill()
            log.warning("relay killed pid=%d reason=hangs", one.pid)
        return bool(relays)

    def trim_log(self) -> None:
        child.trim(self._place.log)

    def remove_files(self) -> None:
        try:
            self._files.remove()
            self._place.clear()
        except OSError as error:
            log.warning("rhi files left behind reason=%s", error)

    async def _adopt(self, link: Link, text: str, hold_s: float) -> bool:
        """Make a former director's ExaBGP ours; where it can't be, the connection is closed."""
        adopted = False
        try:
            adopted = await self.reconfigure(link, text, hold_s)
        finally:
            if not adopted:
                await link.close()
        if adopted:
            log.info("exabgp adopted pid=%d", link.exabgp)
        return adopted

    async def _start(self, text: str, hold_s: float) -> Link:
        self._files.prepare()  # a speaker before this one may have removed them at its end
        self._files.write(text, hold_s)
        exabgp = child.start(self._place, self._files, self._exabgp, grammar.environment(child.user()))
        log.info("exabgp started pid=%d", exabgp.pid)
        link = await self._connect_while_alive(exabgp, START_S)
        if link is None:
            raise RhiError(f"ExaBGP doesn't start: {self._place.last_words()}")
        return link

    async def _connect_while_alive(self, exabgp: Offspring, timeout_s: float) -> Link | None:
        """Wait for the relay of this ExaBGP; None when time is over or ExaBGP ends. Of a time in which this
        process was stopped no more counts than one attempt takes.
        """
        clock = asyncio.get_running_loop().time
        left_s = timeout_s
        while left_s > 0:
            began = clock()
            link = await self.connect()
            if link is not None and link.exabgp == exabgp.pid:
                return link
            if link is not None:
                await link.close()
            if await exabgp.wait_gone(_POLL_S):
                return None
            left_s -= min(clock() - began, HELLO_S)
        return None
