"""The HTTP server: routes, the checks that come before them, and its life inside the agent's nursery."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.config import HttpConfig
from agent.errors import AgentError, ConfigError
from agent.http.auth import check, listen_address, load_keys
from agent.http.errors import error_response
from agent.http.openai_api import chat_endpoint, completion_endpoint, model_by_id, model_list
from agent.http.services import Services

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

log = structlog.get_logger("shoal.http")

_MAX_CONNECTIONS: Final = 512
_KEEP_ALIVE: Final = 30.0
_READ_TIMEOUT: Final = 60


def application(services: Services, keys: tuple[bytes, ...]) -> ASGIApp:
    """The whole API as one ASGI application."""

    async def fleet_self(request: Request) -> Response:
        return JSONResponse(dict(services.self_facts()))

    async def fleet_peers(request: Request) -> Response:
        return JSONResponse({"peers": [dict(peer) for peer in services.peer_facts()]})

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        state = services.readiness()
        return JSONResponse(
            {"ready": state.ready, "reasons": list(state.reasons)}, status_code=200 if state.ready else 503
        )

    routes = [
        Route("/v1/chat/completions", chat_endpoint(services), methods=["POST"]),
        Route("/v1/completions", completion_endpoint(services), methods=["POST"]),
        Route("/v1/models", model_list(services)),
        Route("/v1/models/{id:path}", model_by_id(services)),
        Route("/v1/fleet/self", fleet_self),
        Route("/v1/fleet/peers", fleet_peers),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    return _Guard(app, keys)


class _Guard:
    """Asks for the key before anything of a request is looked at."""

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                check(scope["path"], Headers(scope=scope), self._keys)
            except AgentError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors (404, 405) in the shape of all others."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = {404: "there is no such endpoint", 405: "this endpoint does not take that method"}.get(status, "error")
    body: dict[str, object] = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": f"http_{status}",
        "details": {},
    }
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"error": body}, status_code=status, headers=headers)


async def serve(
    services: Services,
    config: HttpConfig,
    *,
    task_status: TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` starts with the host and port that were bound.

    Raises ConfigError when the address is open to others without a key, or in use. When it is cancelled, connections
    are closed at once: letting jobs finish first is the business of whoever cancels.
    """
    keys = load_keys(config)
    host, port = listen_address(config.listen)
    listener = _bind(host, port)
    hypercorn = HypercornConfig()
    hypercorn.bind = [f"fd://{listener.detach()}"]
    hypercorn.accesslog = None
    hypercorn.errorlog = None
    hypercorn.include_server_header = False
    hypercorn.keep_alive_timeout = _KEEP_ALIVE
    hypercorn.read_timeout = _READ_TIMEOUT
    hypercorn.graceful_timeout = 0.5
    hypercorn.h11_max_incomplete_size = 32 * 1024
    hypercorn.max_app_queue_size = 10
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(_run_hypercorn, application(services, keys), hypercorn)
        task_status.started((host, int(bound[0].rsplit(":", 1)[1])))


async def _run_hypercorn(
    app: ASGIApp, config: HypercornConfig, *, task_status: TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    await hypercorn_serve(app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket; binding here gives a clear error where hypercorn would give a trace."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on http.listen {host}:{port}: {error.strerror}; stop what uses it or choose another port"
        ) from None
    return listener
