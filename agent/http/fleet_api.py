"""The fleet endpoints, and health."""

from __future__ import annotations

from agent.http.errors import NotFoundError
from agent.http.exchange import Exchange
from agent.http.services import Services
from agent.routing.explain import REMEMBERED


class FleetApi:
    """Handlers of /v1/fleet/self, peers and jobs, /healthz and /readyz over one agent's services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def self_facts(self, exchange: Exchange) -> None:
        """GET /v1/fleet/self: this box."""
        await exchange.reply(200, self._services.self_facts())

    async def peers(self, exchange: Exchange) -> None:
        """GET /v1/fleet/peers: every box this one knows of."""
        await exchange.reply(200, {"peers": list(self._services.peer_facts())})

    async def route(self, exchange: Exchange) -> None:
        """GET /v1/fleet/jobs/{id}/route: why a job of this box's clients ran where it ran."""
        job = str(exchange.path_params["id"])
        facts = self._services.route_facts(job)
        if facts is None:
            raise NotFoundError(
                f"nothing is known of a job {job[:64]!r} here: the box that a client asked remembers its last"
                f" {REMEMBERED} jobs, until it is restarted"
            )
        await exchange.reply(200, facts)

    async def healthz(self, exchange: Exchange) -> None:
        """GET /healthz: 200 while the process lives and its event loop turns."""
        await exchange.reply(200, {"status": "ok"})

    async def readyz(self, exchange: Exchange) -> None:
        """GET /readyz: 200 when jobs are taken, else 503 with every reason."""
        readiness = self._services.readiness()
        await exchange.reply(
            200 if readiness.ready else 503, {"ready": readiness.ready, "reasons": list(readiness.reasons)}
        )
