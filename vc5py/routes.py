"""The BGP speaker of the moment: none, one, or none any more after a reload; neighbors come and go in it.

Must not know: which routes, and why. Invariant: what is withdrawn is withdrawn at once; nothing here waits
for the data plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from vc5py.model import IPAddress, Neighbor, RhiConfig
from vc5py.rhi.speaker import SessionState, Speaker, Standing
from vc5py.snapshot import NeighborSnapshot

Make = Callable[[RhiConfig], Speaker]


class Routes:
    """The routes to announce, told to whoever is the speaker. `make` makes a speaker, or raises RhiError."""

    def __init__(self, rhi: RhiConfig | None, make: Make) -> None:
        self._make = make
        self._speaker: Speaker | None = None
        self._wanted: frozenset[IPAddress] | None = None
        self._unreachable: set[IPAddress] = set()
        self._changed = asyncio.Event()
        self._retired: list[Speaker] = []
        self.configure(rhi)

    def configure(self, rhi: RhiConfig | None) -> None:
        """From now on by this; passwords are read again, whatever else has changed. Raises RhiError, and
        nothing has changed then.
        """
        rhi = rhi if rhi is not None and rhi.neighbors else None
        if self._speaker is not None and rhi is not None:
            self._speaker.reconfigure(rhi)
            return
        if self._speaker is None and rhi is None:
            return
        speaker = self._make(rhi) if rhi is not None else None
        if self._speaker is not None:
            self._retired.append(self._speaker)
        self._speaker = speaker
        if speaker is not None:
            for neighbor in self._unreachable:
                speaker.set_reachable(neighbor, False)
            if self._wanted is not None:
                speaker.set_routes(self._wanted)
        self._changed.set()

    def set_reachable(self, neighbor: IPAddress, reachable: bool) -> None:
        """What BFD knows of a neighbor: one that can't be reached is told no routes, and its session ends."""
        if reachable:
            self._unreachable.discard(neighbor)
        else:
            self._unreachable.add(neighbor)
        if self._speaker is not None:
            self._speaker.set_reachable(neighbor, reachable)

    def are_kept(self) -> bool:
        """Whether routers still have the routes of an earlier run, or there are no routers to be told."""
        return self._speaker is None or self._speaker.keeps_routes()

    def set(self, vips: frozenset[IPAddress]) -> None:
        """Wants exactly these VIPs announced."""
        self._wanted = vips
        if self._speaker is not None:
            self._speaker.set_routes(vips)

    def withdraw_all_but(self, vips: frozenset[IPAddress]) -> None:
        """Of what was wanted goes on wanting these; nothing else. Heeds no speaker: what one has announced it
        doesn't know while it has lost ExaBGP, and that would withdraw all.
        """
        if self._wanted is not None:
            self.set(self._wanted & vips)

    def sessions(self) -> dict[IPAddress, bool]:
        """Whether BGP is established, by peer."""
        sessions: Mapping[IPAddress, SessionState] = self._speaker.sessions() if self._speaker else {}
        return {peer: state is SessionState.ESTABLISHED for peer, state in sessions.items()}

    def neighbors(self) -> tuple[NeighborSnapshot, ...]:
        """How it is with every neighbor."""
        standings: Mapping[Neighbor, Standing] = self._speaker.standings() if self._speaker else {}
        return tuple(
            NeighborSnapshot(
                neighbor.address, neighbor.as_number, str(one.state), one.since, one.routes, one.why
            )
            for neighbor, one in standings.items()
        )

    def told(self) -> Mapping[IPAddress, int]:
        """How many neighbors know of each VIP now; of one that nobody knows of nothing."""
        return self._speaker.told() if self._speaker else {}

    async def run(self) -> None:
        """Keeps the speaker of the moment running; until cancelled, which leaves the routes for `hold`."""
        while True:
            await self._retire()
            self._changed.clear()
            await self._run_until_changed()

    async def _retire(self) -> None:
        """One whose leave is cut short is still there to be asked again."""
        while self._retired:
            await self._retired[0].shutdown()
            del self._retired[0]

    async def _run_until_changed(self) -> None:
        """Ends when there is another speaker, or none."""
        changed = asyncio.create_task(self._changed.wait(), name="rhi-changed")
        tasks: list[asyncio.Task[object]] = [changed]
        if self._speaker is not None:
            tasks.append(asyncio.create_task(self._speaker.run(), name="rhi-speaker"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def shutdown(self) -> bool:
        """Withdraws all; whether there was anybody to tell."""
        await self._retire()
        if self._speaker is None:
            return False
        await self._speaker.shutdown()
        return True
