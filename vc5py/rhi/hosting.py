"""The ExaBGP that the speaker talks to: found alive and taken over, reconfigured, or started anew.

Must not know: routes, neighbors, what is in a configuration beyond whether it can be taken over by a reload.

Invariants: there is at most one ExaBGP of a state directory. One that can be made into what is wanted without
an end of its sessions is never replaced.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vc5py.errors import RhiError
from vc5py.rhi import child, grammar, relay
from vc5py.rhi.child import Child, StateFiles
from vc5py.rhi.link import Link, LinkLostError

log = logging.getLogger(__name__)

START_S = 15.0
_POLL_S = 0.05
# A relay that died is replaced by ExaBGP within this time, else ExaBGP is replaced.
_RELAY_S = 5.0

OnEvent = Callable[[Mapping[str, Any]], None]


class Host:
    """Raises RhiError when there is no ExaBGP or `state_dir` can't be used."""

    def __init__(self, state_dir: Path, on_event: OnEvent) -> None:
        self.files = StateFiles(state_dir.absolute())
        self._on_event = on_event
        self._exabgp = child.program()
        self.files.prepare()

    @property
    def relay_command(self) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", relay.__file__, str(self.files.socket))

    async def attach(self, text: str, hold_s: float) -> Link:
        """A connection to an ExaBGP with this configuration: the living one if it can be made so, else a new
        one in its place.
        """
        link = await self._connect_to_former()
        if link is not None:
            self.files.pid.write_text(f"{link.exabgp}\n")
            if self.reconfigure(text, hold_s):
                log.info("exabgp adopted pid=%d", link.exabgp)
                return link
            await link.close()
        await self.stop()
        return await self._start(text, hold_s)

    def former_lives(self) -> bool:
        """Whether there is an ExaBGP of ours already."""
        former = child.find(self.files)
        if former is None:
            return False
        former.close()
        return True

    def reconfigure(self, text: str, hold_s: float) -> bool:
        """Have the living ExaBGP take over another configuration; whether it can. Sessions with neighbors
        that don't change stay up.
        """
        written = self.files.written_configuration()
        if written is None or not grammar.reloadable(written, self.relay_command):
            return False
        self.files.write(text, hold_s)
        exabgp = child.find(self.files) if written != text else None
        if exabgp is not None:
            exabgp.reload()
            exabgp.close()
            log.info("exabgp reconfigured pid=%d", exabgp.pid)
        return True

    async def connect(self) -> Link | None:
        """To whatever ExaBGP there is; None where there is none."""
        try:
            return await Link.connect(self.files.socket, self._on_event)
        except LinkLostError:
            return None

    async def stop(self) -> None:
        """End ExaBGP, if there is one."""
        exabgp = child.find(self.files)
        if exabgp is None:
            return
        try:
            await exabgp.stop()
            log.info("exabgp stopped pid=%d", exabgp.pid)
        finally:
            exabgp.close()

    async def _connect_to_former(self) -> Link | None:
        """A former director's relay. One that has just died is waited for while its ExaBGP lives."""
        former = child.find(self.files)
        if former is None:
            return await self.connect()
        try:
            return await self._connect_while_alive(former, _RELAY_S)
        finally:
            former.close()

    async def _start(self, text: str, hold_s: float) -> Link:
        self.files.prepare()  # a speaker before this one may have removed them at its end
        self.files.write(text, hold_s)
        exabgp = child.start(self.files, self._exabgp, grammar.environment(child.user()))
        log.info("exabgp started pid=%d", exabgp.pid)
        try:
            link = await self._connect_while_alive(exabgp, START_S)
        finally:
            exabgp.close()
        if link is None:
            raise RhiError(f"ExaBGP doesn't start: {self.files.last_log_line()} (see {self.files.log})")
        return link

    async def _connect_while_alive(self, exabgp: Child, timeout_s: float) -> Link | None:
        """Wait for the relay of this ExaBGP; None when time is over or ExaBGP ends."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while clock() < end:
            link = await self.connect()
            if link is not None and link.exabgp == exabgp.pid:
                return link
            if link is not None:
                await link.close()
            if await exabgp.wait_gone(_POLL_S):
                return None
        return None
