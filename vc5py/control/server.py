"""The balancer's end of the control socket: HTTP requests into commands, what they give into JSON.

    GET  /v1/status
    GET  /v1/config     the text of the configuration in force
    POST /v1/state      {"real": ADDRESS, "service": NAME or null, "state": "enabled"|"draining"|"disabled"}
    POST /v1/weight     {"real": ADDRESS, "service": NAME or null, "weight": NUMBER, or null as configured}
    POST /v1/reset      {"real": ADDRESS, "service": NAME or null}
    POST /v1/vip        {"vip": ADDRESS, "state": "announced"|"withdrawn", or null by health}
    POST /v1/reload

Errors are {"error": TEXT}, those of a configuration with "findings" besides. Must not know: how anything is
carried out. Invariants: bodies are bounded, as is the time to send one; whatever is asked, the answer is
JSON or the configuration's text, and never a traceback. Only the socket's owner can open it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vc5py.control import status
from vc5py.control.client import SOCKET_NAME
from vc5py.control.interface import (
    Controllable,
    Outcome,
    ReloadRefusedError,
    ReloadReport,
    UnknownTargetError,
)
from vc5py.core.admin import MAX_WEIGHT
from vc5py.errors import ConfigError, Diagnostic, Vc5Error
from vc5py.model import AdminState, VipState

log = logging.getLogger(__name__)

MAX_BODY = 64 << 10
BODY_S = 5.0
"""How long a client may take to send a body."""
_SHUTDOWN_S = 2.0

_T = TypeVar("_T", bound=BaseModel)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    real: IPv4Address | IPv6Address
    service: str | None = None


class _StateRequest(_Target):
    state: AdminState


class _WeightRequest(_Target):
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT)] | None


class _VipRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    vip: IPv4Address | IPv6Address
    state: VipState | None


class BadRequestError(Vc5Error):
    """The request can't be understood."""


class _Handlers:
    """One method per path."""

    def __init__(self, balancer: Controllable) -> None:
        self._balancer = balancer

    async def status(self, _request: web.Request) -> web.StreamResponse:
        snapshot = await self._balancer.snapshot()
        # In a thread: a hundred thousand reals take a while, in which probes must go on.
        text = await asyncio.to_thread(lambda: json.dumps(status.to_json(snapshot)))
        return web.Response(text=text, content_type="application/json")

    async def configuration(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._balancer.configuration(), content_type="text/yaml")

    async def state(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, TypeAdapter(_StateRequest))
        return _outcome(await self._balancer.set_state(asked.real, asked.service, asked.state))

    async def weight(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, TypeAdapter(_WeightRequest))
        return _outcome(await self._balancer.set_weight(asked.real, asked.service, asked.weight))

    async def reset(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, TypeAdapter(_Target))
        return _outcome(await self._balancer.reset(asked.real, asked.service))

    async def vip(self, request: web.Request) -> web.StreamResponse:
        asked = await _body(request, TypeAdapter(_VipRequest))
        outcome = await self._balancer.set_vip(asked.vip, asked.state)
        state = None if outcome.state is None else str(outcome.state)
        return web.json_response(
            {
                "vip": str(outcome.vip),
                "state": state,
                "announced": outcome.announced,
                "why": outcome.why,
                "unsaved": outcome.unsaved,
            }
        )

    async def reload(self, _request: web.Request) -> web.StreamResponse:
        return _reloaded(await self._balancer.reload())


async def _body(request: web.Request, form: TypeAdapter[_T]) -> _T:
    try:
        async with asyncio.timeout(BODY_S):
            content = await request.read()
    except TimeoutError:
        raise BadRequestError(f"the body did not come within {BODY_S:g} s") from None
    try:
        return form.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"][:1]))
        raise BadRequestError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _outcome(outcome: Outcome) -> web.Response:
    effective = [
        {"service": e.service.service, "vip": str(e.service.vip), "admin": str(e.admin), "weight": e.weight}
        for e in outcome.effective
    ]
    return web.json_response(
        {
            "real": str(outcome.real),
            "effective": effective,
            "warnings": list(outcome.warnings),
            "unsaved": outcome.unsaved,
        }
    )


def _finding(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "file": diagnostic.file,
        "line": diagnostic.line,
        "column": diagnostic.column,
        "message": diagnostic.message,
        "text": str(diagnostic),
    }


def _reloaded(report: ReloadReport) -> web.Response:
    changes = [
        {"kind": str(c.kind), "what": c.what, "detail": c.detail, "restart": c.restart, "text": str(c)}
        for c in report.changes
    ]
    warnings = [_finding(warning) for warning in report.warnings]
    return web.json_response({"changes": changes, "warnings": warnings, "notes": list(report.notes)})


def _refused(status_code: int, error: str, **more: object) -> web.Response:
    return web.json_response({"error": error, **more}, status=status_code)


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadRequestError as error:
        return _refused(HTTPStatus.BAD_REQUEST, str(error))
    except UnknownTargetError as error:
        return _refused(HTTPStatus.NOT_FOUND, str(error))
    except ConfigError as error:
        findings = [_finding(diagnostic) for diagnostic in error.diagnostics]
        return _refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), findings=findings)
    except ReloadRefusedError as error:
        return _refused(HTTPStatus.CONFLICT, str(error))
    except web.HTTPException as error:
        return _refused(error.status, error.text or error.reason)
    except Exception:
        log.exception("event=control_crashed path=%s", request.path)
        return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: see the balancer's log")


def _application(balancer: Controllable) -> web.Application:
    handlers = _Handlers(balancer)
    application = web.Application(middlewares=[_errors_as_json], client_max_size=MAX_BODY)
    application.router.add_get("/v1/status", handlers.status)
    application.router.add_get("/v1/config", handlers.configuration)
    application.router.add_post("/v1/state", handlers.state)
    application.router.add_post("/v1/weight", handlers.weight)
    application.router.add_post("/v1/reset", handlers.reset)
    application.router.add_post("/v1/vip", handlers.vip)
    application.router.add_post("/v1/reload", handlers.reload)
    return application


def _listening(path: Path) -> socket.socket:
    """A socket that only its owner may open, in place of one that a killed run has left."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # at no moment may others open it
    try:
        listener.bind(str(fresh))
        listener.listen()
        fresh.rename(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


@asynccontextmanager
async def serve(state_dir: Path, balancer: Controllable) -> AsyncIterator[None]:
    """Serves while the context lasts. Raises Vc5Error where there can't be a socket."""
    path = state_dir / SOCKET_NAME
    runner = web.AppRunner(_application(balancer), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        listener = _listening(path)
        await web.SockSite(runner, listener).start()
    except OSError as error:
        await runner.cleanup()
        raise Vc5Error(f"can't make the control socket {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        await runner.cleanup()
