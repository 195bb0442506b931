"""The HTTP server: `/metrics` for Prometheus, `/healthy` and `/ready` for others. Knows snapshots only.

Invariant: a move to an address that can't be had leaves it where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from vc5py.errors import Vc5Error
from vc5py.snapshot import Snapshot
from vc5py.web import metrics

_SHUTDOWN_S = 1.0

Place = tuple[str | None, int]
"""Address and TCP port to listen on; None: all addresses, of IPv6 too where there is IPv6."""


def _application(snapshot: Callable[[], Awaitable[Snapshot]]) -> web.Application:
    async def show_metrics(_request: web.Request) -> web.Response:
        # In a thread: a hundred thousand reals take seconds, in which probes must go on.
        body = await asyncio.to_thread(metrics.render, await snapshot())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def show_healthy(_request: web.Request) -> web.Response:
        return web.Response(text="healthy\n")

    async def show_ready(_request: web.Request) -> web.Response:
        shown = await snapshot()
        lacking = [f"no router is told of {vip}\n" for vip, count in shown.vip_told.items() if not count.told]
        status = HTTPStatus.SERVICE_UNAVAILABLE if lacking else HTTPStatus.OK
        return web.Response(text="".join(lacking) or "ready\n", status=status)

    application = web.Application()
    application.router.add_get("/metrics", show_metrics)
    application.router.add_get("/healthy", show_healthy)
    application.router.add_get("/ready", show_ready)
    return application


class MetricsServer:
    """Serves at one place at a time, or (None) nowhere."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self._place: Place | None = None
        self._site: web.TCPSite | None = None

    async def move(self, place: Place | None) -> None:
        """Serves there from now on. Vc5Error where that place can't be had; all is as before then."""
        if place == self._place:
            return
        # One address after the other on the same port: the old one may be what is in the way.
        first = self._place is not None and place is not None and self._place[1] == place[1]
        before = self._place
        if first:
            await self._leave()
        try:
            site = await self._listen(place) if place is not None else None
        except Vc5Error:
            if first and before is not None:
                self._site, self._place = await self._listen(before), before
            raise
        await self._leave()
        self._site, self._place = site, place

    async def _leave(self) -> None:
        if self._site is not None:
            await self._site.stop()
        self._site = self._place = None

    async def _listen(self, place: Place) -> web.TCPSite:
        site = web.TCPSite(self._runner, *place)
        try:
            await site.start()
        except OSError as error:
            await site.stop()  # the runner has noted it, though it never listened
            where = f"{place[0] or 'all addresses,'} port {place[1]}"
            raise Vc5Error(f"can't serve metrics on {where}: {error.strerror}") from error
        return site


@asynccontextmanager
async def serve(snapshot: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[MetricsServer]:
    """Serves wherever it is moved to, while the context lasts."""
    runner = web.AppRunner(_application(snapshot), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        yield MetricsServer(runner)
    finally:
        await runner.cleanup()
