"""The fleet document over HTTP: read what this box holds, hand it ops, found a fleet.

Ops carry their authors' signatures, so these endpoints give nobody any power that a key would not give him.
"""

from __future__ import annotations

import json

from agent.errors import BadRequestError
from agent.http.exchange import Exchange, text_of
from agent.http.services import DocumentServices
from fleet.document.bundle import read_bundle, write_bundle

#: Characters of a bundle in one write.
_CHUNK = 256 * 1024


class DocumentApi:
    """Handlers below /v1/fleet: boxes, document/ops, document/offer."""

    def __init__(self, services: DocumentServices) -> None:
        self._services = services

    async def boxes(self, exchange: Exchange) -> None:
        """GET /v1/fleet/boxes: every box of the fleet, with what is known of it."""
        await exchange.reply(200, {"fleet": self._services.fleet_facts(), "boxes": list(self._services.box_facts())})

    async def export(self, exchange: Exchange) -> None:
        """GET /v1/fleet/document/ops: genesis and ops as a bundle; `?facts=0` leaves out the facts of boxes."""
        genesis, ops = self._services.document(facts=exchange.query("facts") != "0")
        await exchange.start(200, "text/plain; charset=utf-8")
        pending: list[str] = []
        size = 0
        for line in write_bundle(genesis, (op.raw for op in ops)):
            pending.append(line)
            size += len(line)
            if size >= _CHUNK:
                await exchange.write("".join(pending).encode("ascii"))
                pending, size = [], 0
        await exchange.end("".join(pending).encode("ascii"))

    async def join(self, exchange: Exchange) -> None:
        """POST /v1/fleet/join: {"token": TEXT}."""
        token = _token(text_of(await exchange.body()))
        await exchange.reply(200, await self._services.join(token))

    async def offer(self, exchange: Exchange) -> None:
        """POST /v1/fleet/document/offer: a bundle of ops; with a genesis, a box without a fleet joins its fleet."""
        bundle = read_bundle(text_of(await exchange.body()).splitlines())
        if bundle.genesis is None and not bundle.ops:
            raise BadRequestError("the bundle holds no op")
        outcomes = await self._services.offer(bundle.genesis, bundle.ops)
        await exchange.reply(
            200,
            {
                "outcomes": [
                    {
                        "op": outcome.op_id.hex() if outcome.op_id else None,
                        "state": outcome.state,
                        "reason": outcome.reason,
                    }
                    for outcome in outcomes
                ]
            },
        )


def _token(text: str) -> str:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    token = body.get("token") if isinstance(body, dict) else None
    if not isinstance(token, str):
        raise BadRequestError('expected {"token": TEXT}')
    return token
