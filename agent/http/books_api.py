"""What a box keeps account of, over HTTP: metrics, the audit trail, the leaderboard."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import structlog
import trio

from agent.errors import BadRequestError
from agent.http.exchange import Exchange
from agent.http.services import Services
from agent.http.sse import encode_json

log = structlog.get_logger("shoal.http")

#: The last line of a trail that cannot be read to its end.
_BROKEN: Final = {
    "error": {
        "code": "store",
        "message": "the audit trail cannot be read further; see this box's log, and its state folder's disk",
    }
}
_ASKED: Final = ("job", "peer", "model", "outcome", "since")


class BooksApi:
    """Handlers of /metrics, /v1/audit and /v1/fleet/leaderboard over one agent's services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics: the page that Prometheus reads."""
        content_type, page = self._services.metrics()
        await exchange.start(200, content_type, [("content-length", str(len(page)))])
        await exchange.end(page)

    async def leaderboard(self, exchange: Exchange) -> None:
        """GET /v1/fleet/leaderboard: who did how much for others, the most points first."""
        await exchange.reply(200, {"boxes": list(await self._services.leaderboard())})

    async def audit(self, exchange: Exchange) -> None:
        """GET /v1/audit: outcomes, one JSON object a line, oldest first, as they are read from the disk.

        `job`, `peer`, `model`, `outcome` and `since` say which; with `follow=1` the answer goes on with those to come,
        and an empty line now and then, until the client goes away.
        """
        asked = {name: value for name in _ASKED if (value := exchange.query(name))}
        follow = exchange.query("follow") or "0"
        if follow not in ("0", "1"):
            raise BadRequestError("follow is 0 or 1", details={"param": "follow"})
        async with aclosing(self._services.audit(asked, follow=follow == "1")) as lines:
            first = await anext(lines, b"")  # before anything is sent: what was asked for may be wrong
            await exchange.start(200, "application/x-ndjson")
            await exchange.write(first)
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await exchange.wait_gone()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                try:
                    async for piece in lines:
                        await exchange.write(piece)
                    await exchange.end()
                except OSError as error:
                    log.warning("audit.unreadable", reason=error.strerror or str(error))
                    await exchange.end(encode_json(_BROKEN) + b"\n")
                nursery.cancel_scope.cancel()
