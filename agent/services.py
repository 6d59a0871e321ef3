"""What the HTTP side asks of a running agent: facts about this box, its peers and models, and running a job."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

import psutil
import trio

from agent.bookkeeping import Bookkeeping
from agent.config import Config
from agent.engine.box_memory import resident
from agent.engine.pool import EnginePool
from agent.errors import AgentError, ConfigError, OtherFleetError
from agent.fleet_facts import Nearby, box_facts, fleet_facts
from agent.fleet_view import FleetView, unix_time_of
from agent.http.errors import NotFoundError
from agent.http.services import Holder, ModelListing, Readiness
from agent.jobs.active import ActiveJobs
from agent.jobs.job import Emit, Job
from agent.jobs.once import Once
from agent.joining import Joining
from agent.membership import Membership
from agent.model_orders import ModelOrders
from agent.observe.metrics import CONTENT_TYPE
from agent.observe.outcast import refusing_all
from agent.observe.warning import Warning
from agent.routing.explain import RouteLog
from agent.version import VERSION
from fleet.document.invites import read_token
from fleet.document.op import Op
from fleet.document.replica import Outcome
from fleet.errors import DeniedError
from fleet.identity.genesis import Genesis
from fleet.net.gate import Gate
from fleet.net.messages import ModelPresence
from fleet.net.node import Node
from fleet.net.rpc import Router


class AgentServices:
    """Implements `agent.http.services.Services` over the parts of one agent."""

    def __init__(
        self,
        config: Config,
        *,
        view: FleetView,
        node: Node,
        pool: EnginePool,
        active: ActiveJobs,
        jobs: Once,
        routes: RouteLog,
        gate: Gate,
        router: Router,
        membership: Membership,
        joining: Joining,
        warnings: Callable[[], Sequence[Warning]],
        books: Bookkeeping,
        orders: ModelOrders,
        mqtt: Callable[[], Mapping[str, object] | None],
    ) -> None:
        self._config = config
        self._view = view
        self._node = node
        self._pool = pool
        self._active = active
        self._jobs = jobs
        self._routes = routes
        self._books = books
        self._mqtt = mqtt
        #: What an operator asks of this box's models; see ModelOrders.
        self.orders = orders
        books.models = orders.gauges
        self._gate = gate
        self._router = router
        self._warnings = warnings
        self._membership = membership
        self._joining = joining
        self._started_at = trio.current_time()

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a client's job; see Once.run and JobRunner.run."""
        await self._books.observer.follow(self._jobs.run, job, emit)

    def not_understood(self, job: str, error: AgentError) -> None:
        """Keep account of a request that became no job."""
        self._books.observer.not_understood(job, error)

    def metrics(self) -> tuple[str, bytes]:
        """The metrics' page, with its content type."""
        return CONTENT_TYPE, self._books.metrics()

    def audit(self, asked: Mapping[str, str], *, follow: bool) -> AsyncGenerator[bytes, None]:
        """The audit trail; see Bookkeeping.audit."""
        return self._books.audit(asked, follow=follow)

    async def leaderboard(self) -> Sequence[Mapping[str, object]]:
        """Who did how much for others; see Contributions.leaderboard."""
        return await self._books.contributions.leaderboard()

    def models(self) -> Sequence[ModelListing]:
        """Every model held here or by a connected peer, one entry a content hash, local holders first."""
        listings: dict[str, ModelListing] = {}

        def add(name: str, model_hash: str, context_tokens: int, holder: Holder) -> None:
            known = listings.get(model_hash)
            if known is None:
                listings[model_hash] = ModelListing(name, model_hash, context_tokens, (holder,))
            else:
                listings[model_hash] = ModelListing(
                    known.name, model_hash, known.context_tokens, (*known.holders, holder)
                )

        for held in self._pool.models():
            if held.hash:
                own = (self._node.peer_id, self._config.name, True)
                taken = held.memory_bytes, resident(held.pid)
                holder = Holder(*own, held.state, held.decode_rate, held.engine, held.url, *taken)
                add(held.name, held.hash, held.context_tokens, holder)
        for link in self._node.links():
            seen = self._view.presence.last(link.peer_id)
            for model in seen.presence.models if seen else ():
                holder = Holder(link.peer_id, self._view.name_of(link.peer_id), False, model.state, model.decode_rate)
                add(model.name, model.hash, model.context_tokens, holder)
        return sorted(listings.values(), key=lambda listing: listing.name)

    def meant(self, asked: str) -> str:
        """The content hash of what answers best to a name, the name itself where nothing does.

        Raises ModelNameError for what names no model.
        """
        best = self._view.survey(asked, None).choice.order
        return best[0].offer.hash if best else asked

    def models_shown(self) -> Sequence[Mapping[str, object]]:
        """Every model that can be asked for, in short, those held here first."""
        shown = [
            {
                "name": listing.name,
                "here": any(holder.local for holder in listing.holders),
                "state": next((holder.state for holder in listing.holders if holder.local), listing.holders[0].state),
            }
            for listing in self.models()
        ]
        return sorted(shown, key=lambda one: not one["here"])

    def unload(self, model: str) -> Mapping[str, object]:
        """Free a model's memory until it is asked for again; see EnginePool.unload."""
        done = self._pool.unload(model)
        return {"model": model, "unloaded": done}

    def retry(self, model: str) -> Mapping[str, object]:
        """Let a model that failed be loaded again; see EnginePool.retry."""
        done = self._pool.retry(model)
        return {"model": model, "retried": done}

    def readiness(self) -> Readiness:
        """Ready when the box takes jobs and every model that is to be loaded at start is loaded or has failed."""
        reasons = []
        if self._active.draining:
            reasons.append("shutting down")
        if self._config.engine.preload:
            reasons += [f"model {held.name} is loading" for held in self._pool.models() if held.state == "loading"]
        return Readiness(not reasons, tuple(reasons))

    def self_facts(self) -> Mapping[str, object]:
        """This box: identity, addresses, load, models, warnings, and what it refused."""
        process = psutil.Process()
        return {
            "peer_id": self._node.peer_id,
            "name": self._config.name,
            "version": VERSION,
            "addrs": list(self._node.addrs()),
            "state": "draining" if self._active.draining else "serving",
            "uptime_s": round(trio.current_time() - self._started_at, 1),
            "jobs_running": self._active.running,
            "rss_bytes": process.memory_info().rss,
            "memory_budget_bytes": self._pool.memory_budget(),
            "models": [
                {
                    "name": held.name,
                    "hash": held.hash,
                    "reads": held.reads,
                    "state": held.state,
                    "context_tokens": held.context_tokens,
                    "decode_rate": held.decode_rate,
                    "prefill_rate": held.prefill_rate,
                    "running": held.running,
                    "queued": held.queued,
                    "error": held.error,
                    "slots": held.slots,
                    "size_bytes": held.size_bytes,
                    "memory_bytes": held.memory_bytes,
                    "rss_bytes": resident(held.pid),
                    "engine_version": held.engine_version,
                    "cells": held.cells,
                    "plan_note": held.plan_note,
                    **({"engine": held.engine, "url": held.url, "lend": held.lend} if held.engine else {}),
                }
                for held in self._pool.models()
            ],
            "engines": [
                {
                    "kind": engine.kind,
                    "url": engine.url,
                    "detected": engine.detected,
                    "lend": engine.lend,
                    "error": engine.error,
                    "models": engine.models,
                }
                for engine in self._pool.engines()
            ],
            "health": self._health_facts(),
            "mqtt": self._mqtt(),
            "warnings": [
                {
                    "code": warning.code,
                    "severity": warning.severity,
                    "title": warning.title,
                    "text": warning.text,
                    "remedy": warning.remedy,
                }
                for warning in self._warnings()
            ],
            "refused": dict(self._router.refused + self._view.refused),
        }

    def _health_facts(self) -> Mapping[str, object]:
        """How this box is, and why it takes no jobs of others now, if so (`refuses`)."""
        condition = self._view.condition()
        known = condition.health.model_dump(mode="json")
        refuses = self._view.only_borrows() or condition.health.refuses
        return {"cpu": round(condition.cpu, 3), "memory": round(condition.memory, 3), **known, "refuses": refuses}

    def peer_facts(self) -> Sequence[Mapping[str, object]]:
        """Every box this one dials, is linked to, or has heard."""
        neighbours = {n.peer_id: n for n in self._node.neighbours()}
        links = {link.peer_id: link for link in self._node.links()}
        heard = self._view.presence.all()
        facts = []
        for peer_id in dict.fromkeys((*neighbours, *links, *heard)):
            neighbour, link, seen = neighbours.get(peer_id), links.get(peer_id), heard.get(peer_id)
            state = "connected" if link else (neighbour.state if neighbour else "unreachable")
            if state == "connected" and link is None:
                state = "connecting"
            facts.append(
                {
                    "peer_id": peer_id,
                    "name": self._view.name_of(peer_id),
                    "connected": link is not None,
                    "state": state,
                    "addrs": list(neighbour.addrs) if neighbour else [],
                    "remote_addr": link.remote_addr if link else None,
                    "rtt_ms": round(link.rtt * 1000, 2) if link and link.rtt is not None else None,
                    "last_error": neighbour.last_error if neighbour and link is None else "",
                    "down_since": round(unix_time_of(neighbour.down_since), 1) if neighbour and not link else None,
                    "last_seen_s": round(trio.current_time() - seen.at, 1) if seen else None,
                    "version": seen.presence.version if seen else None,
                    "box_state": seen.presence.state if seen else None,
                    "models": [_model_facts(model) for model in seen.presence.models] if seen else [],
                }
            )
        return sorted(facts, key=lambda fact: (not fact["connected"], str(fact["name"])))

    def route_facts(self, job: str) -> Mapping[str, object] | None:
        """Why a job of this box's clients ran where it ran; None where nothing is remembered of it."""
        route = self._routes.find(job)
        return None if route is None else route.facts()

    # --- the fleet document ----------------------------------------------------------------------------------------

    def fleet_facts(self) -> Mapping[str, object] | None:
        """The fleet: name, id, admins, what is in dispute, and who refuses this box where everybody does."""
        replica = self._membership.replica
        return None if replica is None else fleet_facts(replica, self.refused_by())

    def refused_by(self) -> Sequence[str]:
        """The PeerIDs of this box's neighbours, where all that answer refuse it; else nothing."""
        linked = any(self._membership.is_member(link.peer_id) for link in self._node.links())
        return refusing_all(self._node.neighbours(), linked)

    def box_facts(self) -> Sequence[Mapping[str, object]]:
        """Every box of the fleet, this one included."""
        replica = self._membership.replica
        if replica is None:
            return []
        return box_facts(replica, self._node.peer_id, self._nearby())

    def _nearby(self) -> dict[str, Nearby]:
        now = trio.current_time()
        found = {}
        for peer_id, seen in self._view.presence.all().items():
            connected = self._node.link(peer_id) is not None
            running = sum(model.running + model.queued for model in seen.presence.models)
            found[peer_id] = Nearby(connected, now - seen.at, running, seen.presence.cpu, seen.presence.memory)
        return found

    def document(self, *, facts: bool) -> tuple[Genesis | None, Sequence[Op]]:
        """The genesis and the ops this box holds."""
        replica = self._membership.replica
        if replica is None:
            return None, ()
        return replica.genesis, list(replica.ops.ops()) if facts else replica.ops.governing_ops()

    async def offer(self, genesis: Genesis | None, ops: Sequence[bytes]) -> Sequence[Outcome]:
        """Take ops in, and found the fleet where there is none yet; raises FleetError.

        OtherFleetError where the genesis is of another fleet than this box's: then nothing is taken in.
        """
        if genesis is not None:
            self._refuse_other_fleet(genesis, "what was handed over is")
            return await self._membership.found(genesis, ops)
        if self._membership.replica is None:
            raise NotFoundError("this box belongs to no fleet yet; see `shoal fleet init` and `shoal join`")
        return await self._membership.replica.offer(ops)

    async def join(self, token_text: str) -> Mapping[str, object]:
        """Knock once at each of a token's addresses; where nobody lets this box in yet, the agent goes on by itself.

        A box that is a member already does nothing, and says so. Raises OtherFleetError for a token of another fleet,
        and DeniedError, with the remedy, for one that will never do.
        """
        token = read_token(token_text)
        self._refuse_other_fleet(token.genesis, "the token is")
        done: dict[str, object] = {"joined": True, "already": True, "fleet": token.genesis.name, "problem": ""}
        if self._joining.settled:
            return done
        try:
            joined = await self._joining.knock(token)
        except ConfigError as error:
            raise DeniedError(error.message) from None
        if not joined:
            self._joining.ask(token)
        return {**done, "joined": joined, "already": False, "problem": "" if joined else self._joining.problem}

    def _refuse_other_fleet(self, other: Genesis, what: str) -> None:
        replica = self._membership.replica
        if replica is None or other.fleet_id == replica.fleet_id:
            return
        own = replica.genesis
        raise OtherFleetError(
            f"this box belongs to the fleet {own.name!r} ({own.fleet_id.hex()[:16]}…), and {what} of the fleet"
            f" {other.name!r} ({other.fleet_id.hex()[:16]}…); nothing was taken in",
            details={
                "fleet": own.fleet_id.hex(),
                "fleet_name": own.name,
                "other_fleet": other.fleet_id.hex(),
                "other_fleet_name": other.name,
            },
        )


def _model_facts(model: ModelPresence) -> dict[str, object]:
    return model.model_dump(mode="json")
