"""Models that are stored, placed and moved: see them, take one in, keep one here, check, delete.

Who may use the API at all may do all of it: it is this box's disk and link. What a model is to be for the whole fleet
is said in the document, and takes an admin's key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agent.errors import BadRequestError
from agent.http.exchange import Exchange, text_of
from agent.http.services import Services

_MAX_NAME: Final = 256
_MAX_SOURCE: Final = 4096


class OrdersApi:
    """Handlers of /v1/fleet/models, placements and transfers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def catalogue(self, exchange: Exchange) -> None:
        """GET /v1/fleet/models: the fleet's models, who holds them, and what this box has."""
        await exchange.reply(200, self._services.orders.catalogue())

    async def placements(self, exchange: Exchange) -> None:
        """GET /v1/fleet/placements: where each falls, and why not elsewhere."""
        await exchange.reply(200, self._services.orders.placements())

    async def transfers(self, exchange: Exchange) -> None:
        """GET /v1/fleet/transfers: what moves or is checked on this box, and the last of what did."""
        await exchange.reply(200, self._services.orders.transfers())

    async def add(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/add: {"source": PATH, URL or hf:ORG/REPO/FILE, "algorithm"?: sha256 or blake3}."""
        body = _read(await exchange.body(), {"source": str, "algorithm": str}, needed={"source"})
        if not 0 < len(body["source"]) <= _MAX_SOURCE:
            raise BadRequestError(f"source has 1 to {_MAX_SOURCE} characters")
        transfer = await self._services.orders.add(body["source"], body.get("algorithm", "sha256"))
        await exchange.reply(200, {"transfer": transfer})

    async def pull(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/pull: {"model": NAME}."""
        body = _read(await exchange.body(), {"model": str}, needed={"model"})
        await exchange.reply(200, await self._services.orders.pull(_name(body)))

    async def verify(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/verify: {"model": NAME}."""
        body = _read(await exchange.body(), {"model": str}, needed={"model"})
        await exchange.reply(200, {"transfer": await self._services.orders.verify(_name(body))})

    async def remove(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/remove: {"model": NAME, "last"?: whether the last copy of all may be lost}."""
        body = _read(await exchange.body(), {"model": str, "last": bool}, needed={"model"})
        await exchange.reply(200, await self._services.orders.remove(_name(body), last=body.get("last", False)))

    async def collect(self, exchange: Exchange) -> None:
        """POST /v1/fleet/models/gc: {"dry_run"?: bool, "last"?: bool}."""
        body = _read(await exchange.body(), {"dry_run": bool, "last": bool}, needed=set())
        found = await self._services.orders.collect(dry_run=body.get("dry_run", False), last=body.get("last", False))
        await exchange.reply(200, found)


def _read(raw: bytes, fields: Mapping[str, type], *, needed: set[str]) -> dict[str, Any]:
    """A JSON object with these fields and no others; raises BadRequestError."""
    try:
        body = json.loads(text_of(raw))
    except (ValueError, RecursionError):
        body = None
    right = isinstance(body, dict) and all(type(body[key]) is fields.get(key) for key in body)
    if not right or not needed <= body.keys():
        form = ", ".join(f'"{key}"{"" if key in needed else "?"}: {kind.__name__}' for key, kind in fields.items())
        raise BadRequestError(f"expected a JSON object {{{form}}}")
    return dict(body)


def _name(body: Mapping[str, Any]) -> str:
    name: str = body["model"]
    if not 0 < len(name) <= _MAX_NAME:
        raise BadRequestError(f"model is a name or hash of at most {_MAX_NAME} characters")
    return name
