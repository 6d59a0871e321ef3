"""The OpenAI endpoints: models, chat completions, completions and embeddings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import structlog
import trio

from agent.errors import AgentError, ModelNotFoundError
from agent.http.embeddings_answer import VectorAnswer
from agent.http.embeddings_schema import parse_embedding
from agent.http.errors import internal, problem_of
from agent.http.exchange import Exchange
from agent.http.idempotency import keyed
from agent.http.openai_answer import StreamAnswer, WholeAnswer
from agent.http.openai_schema import Asked, parse_chat, parse_completion
from agent.http.services import ModelListing, Services
from agent.jobs.job import Job
from fleet.models.reference import matches

#: Bytes of a body past which it is understood in a thread.
PARSE_APART: Final = 4 * 1024
#: What is in every body that may say how the answer has to look, keys that are written with escapes among them: a
#: grammar of 20 characters can take a tenth of a second to be checked.
_MAY_BE_COSTLY: Final = (b"\\", b"grammar", b"response_format", b"tools")
#: How many of them at a time: each takes turns with the loop that everybody else waits for.
PARSED_AT_ONCE: Final = 2

A = TypeVar("A")
#: Understands a body, with the headers, as a job with this id.
Parse: TypeAlias = Callable[[bytes, Callable[[str], str | None], str], A]

log = structlog.get_logger("shoal.http")


def new_job_id() -> str:
    """An id that sorts by time and that nobody can guess: 48 bits of milliseconds, 80 of chance."""
    return f"job-{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}{secrets.token_hex(10)}"


class OpenAIApi:
    """Handlers of /v1/models, /v1/chat/completions, /v1/completions and /v1/embeddings over one agent's services."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._parsing = trio.CapacityLimiter(PARSED_AT_ONCE)

    async def list_models(self, exchange: Exchange) -> None:
        """GET /v1/models: every model held here or by a connected peer."""
        await exchange.reply(200, {"object": "list", "data": [_model(m) for m in self._services.models()]})

    async def get_model(self, exchange: Exchange) -> None:
        """GET /v1/models/{id}: one model, by name, hash or alias, as a request would name it."""
        asked = exchange.path_params["id"]
        listings = self._services.models()
        meant = self._services.meant(asked)
        for listing in listings:
            if matches(meant, model_hash=listing.hash, name=listing.name):
                await exchange.reply(200, _model(listing))
                return
        known = [listing.name for listing in listings]
        raise ModelNotFoundError(
            f"no box that is connected holds {asked[:256]!r}; there are: {', '.join(known) or 'none'}",
            details={"known": known, "param": "model"},
        )

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        await self._answer(exchange, parse_chat)

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        await self._answer(exchange, parse_completion)

    async def embedding(self, exchange: Exchange) -> None:
        """POST /v1/embeddings."""
        asked = await self._understood(exchange, parse_embedding)
        await self._run(asked.job, exchange, VectorAnswer(exchange, asked))

    async def _answer(self, exchange: Exchange, parse: Parse[Asked]) -> None:
        asked = await self._understood(exchange, parse)
        answer = StreamAnswer(exchange, asked) if asked.stream else WholeAnswer(exchange, asked)
        await self._run(asked.job, exchange, answer)

    async def _understood(self, exchange: Exchange, parse: Parse[A]) -> A:
        """What is asked for, under a new job's id."""
        job = new_job_id()
        exchange.job = job
        exchange.headers.append(("x-shoal-job", job))
        try:
            body = await exchange.body()
            if len(body) > PARSE_APART or any(mark in body for mark in _MAY_BE_COSTLY):
                return await trio.to_thread.run_sync(parse, body, exchange.header, job, limiter=self._parsing)
            return parse(body, exchange.header, job)
        except AgentError as error:
            self._services.not_understood(job, error)
            raise

    async def _run(self, asked: Job, exchange: Exchange, answer: WholeAnswer | StreamAnswer | VectorAnswer) -> None:
        """Run the job until its answer is complete, or the client has gone, which cancels it wherever it runs."""
        job = asked.request.job
        asked = keyed(asked, exchange.header)
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await exchange.wait_gone()
                if not answer.done:
                    log.info("http.client_gone", job=job)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                await self._services.run(asked, answer.emit)
                if not answer.done:
                    raise RuntimeError("the job ended without saying how")
            except Exception as error:
                problem = problem_of(error)
                if problem is None:
                    log.exception("http.internal", job=job)
                if not answer.done:
                    await answer.fail(problem or internal(job))
            nursery.cancel_scope.cancel()


def _model(listing: ModelListing) -> dict[str, object]:
    return {
        "id": listing.name,
        "object": "model",
        # When a model was made is not known; the field is required by clients.
        "created": 0,
        "owned_by": "shoal",
        "shoal": {
            "hash": listing.hash,
            "context_tokens": listing.context_tokens,
            "holders": [
                {
                    "peer_id": holder.peer_id,
                    "name": holder.name,
                    "local": holder.local,
                    "state": holder.state,
                    "decode_rate": holder.decode_rate,
                    **({"engine": holder.engine, "url": holder.url} if holder.engine else {}),
                    **(
                        {"memory_bytes": holder.memory_bytes, "rss_bytes": holder.rss_bytes}
                        if holder.memory_bytes
                        else {}
                    ),
                }
                for holder in listing.holders
            ],
        },
    }
