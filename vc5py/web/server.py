"""The HTTP server: `/metrics` for Prometheus. Knows snapshots only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from vc5py.errors import Vc5Error
from vc5py.snapshot import Snapshot
from vc5py.web import metrics

_SHUTDOWN_S = 1.0


def _application(snapshot: Callable[[], Snapshot]) -> web.Application:
    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(snapshot()), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/metrics", show_metrics)
    return application


@asynccontextmanager
async def serve(address: str, port: int, snapshot: Callable[[], Snapshot]) -> AsyncIterator[None]:
    """Serves while the context lasts. Raises Vc5Error where the address or port can't be had."""
    runner = web.AppRunner(_application(snapshot), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError as error:
        await runner.cleanup()
        raise Vc5Error(f"can't serve metrics on {address} port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        await runner.cleanup()
