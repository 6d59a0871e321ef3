"""The HTTP server: routes, the order in which a request is checked, and its life from bind to close."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from agent.config import HttpConfig
from agent.errors import ConfigError
from agent.http import malformed
from agent.http.auth import Gate, is_loopback, read_keys
from agent.http.books_api import BooksApi
from agent.http.connections import ClientStream, Connections
from agent.http.document_api import DocumentApi
from agent.http.document_socket import MAX_MESSAGE, DocumentSocket
from agent.http.errors import MethodNotAllowedError, NotFoundError, internal, problem_of
from agent.http.exchange import ClientGoneError, Exchange, Receive, Scope, Send
from agent.http.fleet_api import FleetApi
from agent.http.malformed import MAX_HEAD, head_too_large
from agent.http.models_api import ModelsApi
from agent.http.open_requests import OpenRequests
from agent.http.openai_api import OpenAIApi, new_job_id
from agent.http.orders_api import OrdersApi
from agent.http.services import Services

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

log = structlog.get_logger("shoal.http")

#: Seconds a connection may be idle between two requests.
IDLE_TIMEOUT: Final = 30.0
_EXCHANGE: Final = "shoal.exchange"

Handler = Callable[[Exchange], Awaitable[None]]


class _Endpoint:
    """A handler as the router calls it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[_EXCHANGE]
        exchange.path_params = scope.get("path_params", {})
        await self._handler(exchange)


class App:
    """The ASGI application: gate, then router; every error leaves as JSON of one shape."""

    def __init__(
        self,
        services: Services,
        keys: tuple[bytes, ...],
        socket: DocumentSocket | None = None,
        requests: OpenRequests | None = None,
    ) -> None:
        openai, fleet, models = OpenAIApi(services), FleetApi(services), ModelsApi(services)
        document, books, orders = DocumentApi(services), BooksApi(services), OrdersApi(services)
        table: dict[str, tuple[str, Handler]] = {
            "/v1/models": ("GET", openai.list_models),
            "/v1/models/{id:path}": ("GET", openai.get_model),
            "/v1/chat/completions": ("POST", openai.chat),
            "/v1/completions": ("POST", openai.completion),
            "/v1/embeddings": ("POST", openai.embedding),
            "/v1/fleet/self": ("GET", fleet.self_facts),
            "/v1/fleet/peers": ("GET", fleet.peers),
            "/v1/fleet/models": ("GET", orders.catalogue),
            "/v1/fleet/models/add": ("POST", orders.add),
            "/v1/fleet/models/pull": ("POST", orders.pull),
            "/v1/fleet/models/verify": ("POST", orders.verify),
            "/v1/fleet/models/remove": ("POST", orders.remove),
            "/v1/fleet/models/gc": ("POST", orders.collect),
            "/v1/fleet/models/unload": ("POST", models.unload),
            "/v1/fleet/models/retry": ("POST", models.retry),
            "/v1/fleet/jobs/{id}/route": ("GET", fleet.route),
            "/v1/fleet/boxes": ("GET", document.boxes),
            "/v1/fleet/document/ops": ("GET", document.export),
            "/v1/fleet/document/offer": ("POST", document.offer),
            "/v1/fleet/join": ("POST", document.join),
            "/v1/fleet/placements": ("GET", orders.placements),
            "/v1/fleet/transfers": ("GET", orders.transfers),
            "/v1/fleet/leaderboard": ("GET", books.leaderboard),
            "/v1/audit": ("GET", books.audit),
            "/metrics": ("GET", books.metrics),
            "/healthz": ("GET", fleet.healthz),
            "/readyz": ("GET", fleet.readyz),
        }
        self._gate = Gate(keys)
        self._socket = socket or DocumentSocket(lambda: None)
        self._requests = requests or OpenRequests()
        self._paths = list(table)
        self._router = Router(
            [Route(path, _Endpoint(handler), methods=[method]) for path, (method, handler) in table.items()],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; never raises but to pass on a cancellation."""
        if scope["type"] == "websocket":
            await self._socket.serve(scope, receive, send, self._gate)
            return
        with self._requests.track():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        exchange.headers.append(("x-request-id", _request_id(exchange.header("x-request-id"))))
        scope[_EXCHANGE] = exchange
        # With an application in the scope the router raises for an unknown path instead of answering in plain text.
        scope["app"] = self
        try:
            if exchange.head_bytes > MAX_HEAD:
                raise head_too_large()
            self._gate.check(exchange)
            await self._router(scope, receive, send)
        except ClientGoneError:
            log.debug("http.client_gone", path=exchange.path)
        except HTTPException as error:
            await self._refuse(exchange, self._routing_error(exchange, error))
        except Exception as error:  # noqa: BLE001 - the last boundary: it is logged there, and its inside is hidden
            await self._refuse(exchange, error)

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        problem = problem_of(error)
        if problem is None:
            log.error("http.internal", job=exchange.job, path=exchange.path, exc_info=error)
            problem = internal(exchange.job)
        await exchange.refuse(problem)

    def _routing_error(self, exchange: Exchange, error: HTTPException) -> Exception:
        allow = (error.headers or {}).get("Allow")
        if error.status_code == 405 and allow:
            exchange.headers.append(("allow", allow))
            return MethodNotAllowedError(f"{exchange.path} takes {allow}, not {exchange.method[:20]}")
        return NotFoundError(
            f"there is no {exchange.path[:200]} here; there are: {', '.join(self._paths)}",
            details={"known": self._paths},
        )


async def serve(
    services: Services,
    config: HttpConfig,
    socket: DocumentSocket | None = None,
    requests: OpenRequests | None = None,
    *,
    task_status: TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP until cancelled; `task_status.started` gets the bound (host, port).

    `socket` serves the fleet document to websockets; without one they are refused. `requests` counts what is being
    answered.

    Raises ConfigError where the address cannot be used, or is not loopback and no key file is set. On cancel every
    connection is closed at once: letting running jobs finish first is the caller's.
    """
    host, port = parse_listen(config.listen)
    keys = read_keys(config.api_key_file) if config.api_key_file is not None else ()
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"http.listen {config.listen} can be reached from other machines, so it needs API keys: set"
            " http.api_key_file to a file of mode 0600 with one key a line, or listen on 127.0.0.1"
        )
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on http.listen {config.listen}: {reason}; free it or change it") from None
    malformed.install()
    app = App(services, keys, socket, requests)
    serving = partial(_serve_connection, app, _hypercorn_config(), WorkerContext(None))
    connections = Connections(serving)
    address = listeners[0].socket.getsockname()
    task_status.started((address[0], address[1]))
    async with trio.open_nursery() as nursery:
        # Before the cancellation reaches the tasks: a write of hypercorn's is shielded from it, a closed socket not.
        nursery.start_soon(_close_when_cancelled, connections)
        await trio.serve_listeners(connections.accept, listeners)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT; port 0 lets the system choose. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not colon or not host or not 0 <= number <= 65535 or (":" in host and not bracketed):
        raise ConfigError(f"http.listen {text!r} is not HOST:PORT, such as 127.0.0.1:8420 or [::1]:8420")
    return host[1:-1] if bracketed else host, number


async def _close_when_cancelled(connections: Connections) -> None:
    try:
        await trio.sleep_forever()
    finally:
        connections.close_all()


async def _serve_connection(app: App, config: HypercornConfig, context: WorkerContext, stream: ClientStream) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with stream.answering():
            await app(scope, receive, send)

    try:
        await TCPServer(ASGIWrapper(answer), config, context, {}, stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as group:
        log.debug("http.connection_lost", reason=str(group.exceptions[0]))
    except* Exception:
        # One connection's trouble is no other's: an error here is hypercorn's own.
        log.exception("http.connection_failed")


def _hypercorn_config() -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = None
    config.keep_alive_timeout = IDLE_TIMEOUT
    config.h11_max_incomplete_size = MAX_HEAD
    config.h2_max_header_list_size = MAX_HEAD
    config.websocket_max_message_size = MAX_MESSAGE
    config.h2_max_concurrent_streams = 16
    config.include_server_header = False
    return config


def _request_id(given: str | None) -> str:
    """The client's own request id where it is fit for a header, else a new one."""
    if given is not None and 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return "req-" + new_job_id().removeprefix("job-")
