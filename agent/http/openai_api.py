"""POST /v1/chat/completions and /v1/completions, GET /v1/models: requests in, jobs run, events out as they come."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from agent.errors import AgentError, BadRequestError, ModelNotFoundError
from agent.http.answer import DONE, Answer, served_headers, sse
from agent.http.body import ClientGoneError, read_body, until_gone
from agent.http.errors import Failure, error_body, error_response
from agent.http.openai_schema import OpenAIRequest, parse_chat, parse_completion, to_infer_request
from agent.http.services import ModelListing, Services
from agent.jobs.job import POLICIES, Job, JobEvent, Resumed, Routed
from fleet.errors import FleetError
from fleet.net.messages import Delta, Finished

log = structlog.get_logger("shoal.http")

_TRACEPARENT: Final = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
_ON_INTERRUPT: Final = ("error", "resume")


class InternalError(AgentError):
    """Something in this box failed in a way nobody foresaw; its log has the trace under the job's id."""

    code = "internal"


class Completions:
    """One ASGI endpoint that runs jobs; `parse` makes a request of a body."""

    def __init__(self, services: Services, parse: Callable[[bytes], OpenAIRequest]) -> None:
        self._services = services
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, run, answer. A client that goes away cancels its job wherever it runs."""
        job_id = f"job-{secrets.token_hex(13)}"
        try:
            data = await read_body(scope, receive)
            body = self._parse(data)
            job = make_job(body, Headers(scope=scope), job_id)
        except ClientGoneError:
            return
        except (AgentError, FleetError) as error:
            await error_response(error, {"X-Shoal-Job": job_id})(scope, receive, send)
            return
        options = body.stream_options
        answer = Answer(job.request.kind, job_id, int(time.time()), bool(options and options.include_usage))
        writer: _Stream | _Whole = _Stream(answer, send) if body.stream else _Whole(answer)
        stayed = await until_gone(receive, lambda: self._run(job, writer))
        if stayed and isinstance(writer, _Whole):
            await writer.response()(scope, receive, send)
        elif stayed and isinstance(writer, _Stream) and writer.failed_early is not None:
            await error_response(writer.failed_early, {"X-Shoal-Job": job_id})(scope, receive, send)

    async def _run(self, job: Job, writer: _Stream | _Whole) -> None:
        try:
            await self._services.run(job, writer.emit)
        except (AgentError, FleetError) as error:
            await writer.fail(error)
        except Exception:
            log.exception("http.job_failed", job=job.request.job)
            await writer.fail(InternalError(f"this box failed to handle the request; its log has {job.request.job}"))


def make_job(body: OpenAIRequest, headers: Mapping[str, str], job_id: str) -> Job:
    """The job a request asks for, with what its headers say. Nothing else of the headers goes on."""
    policy = headers.get("x-shoal-offload", "prefer")
    if policy not in POLICIES:
        raise BadRequestError(
            f"X-Shoal-Offload: {policy[:40]!r} is not one of {', '.join(POLICIES)}",
            details={"param": "X-Shoal-Offload"},
        )
    on_interrupt = headers.get("x-shoal-on-interrupt", "error")
    if on_interrupt not in _ON_INTERRUPT:
        raise BadRequestError(
            f"X-Shoal-On-Interrupt: {on_interrupt[:40]!r} is not one of {', '.join(_ON_INTERRUPT)}",
            details={"param": "X-Shoal-On-Interrupt"},
        )
    trace = headers.get("traceparent", "")
    request = to_infer_request(body, job_id, trace if _TRACEPARENT.match(trace) else None)
    return Job(request, policy=policy, on_interrupt="resume" if on_interrupt == "resume" else "error")


class _Stream:
    """Server-sent events, one for every event of the job, sent at once.

    The status line waits for the first event: an error before it is a proper HTTP error. An error after it is an
    event of its own, and then the stream ends without [DONE].
    """

    def __init__(self, answer: Answer, send: Send) -> None:
        self.failed_early: Failure | None = None
        self._answer = answer
        self._send = send
        self._routed: Routed | None = None

    async def emit(self, event: JobEvent) -> None:
        answer = self._answer
        if isinstance(event, Routed):
            self._routed = event
            await self._start(event)
            await self._write(sse(answer.chunk(event, None, first=True) | {"shoal": answer.shoal(event)}))
            return
        if self._routed is None:
            raise RuntimeError("a job's first event says who serves it")
        if isinstance(event, Resumed):
            self._routed = event.routed
            note = answer.shoal(event.routed) | {"resumed_from": event.from_name}
            await self._write(sse(answer.chunk(event.routed, None) | {"shoal": note}))
        elif isinstance(event, Delta):
            if event.text:
                await self._write(sse(answer.chunk(self._routed, event.text)))
        else:
            await self._finish(self._routed, event)

    async def fail(self, failure: Failure) -> None:
        if self._routed is None:
            self.failed_early = failure
            return
        await self._write(sse(error_body(failure)))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, routed: Routed) -> None:
        headers = served_headers(self._answer.job, routed) | {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _finish(self, routed: Routed, finished: Finished) -> None:
        last = sse(self._answer.chunk(routed, None, reason=finished.reason))
        if self._answer.include_usage:
            last += sse(self._answer.usage_chunk(routed, finished))
        await self._send({"type": "http.response.body", "body": last + DONE, "more_body": False})

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


class _Whole:
    """Collects the events of a job into one answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._text: list[str] = []
        self._routed: Routed | None = None
        self._resumed_from: list[str] = []
        self._finished: Finished | None = None
        self._failure: Failure | None = None

    async def emit(self, event: JobEvent) -> None:
        if isinstance(event, Routed):
            self._routed = event
        elif isinstance(event, Resumed):
            self._resumed_from.append(event.from_name)
            self._routed = event.routed
        elif isinstance(event, Delta):
            self._text.append(event.text)
        else:
            self._finished = event

    async def fail(self, failure: Failure) -> None:
        self._failure = failure

    def response(self) -> Response:
        job = self._answer.job
        headers = served_headers(job, self._routed) if self._routed is not None else {"X-Shoal-Job": job}
        if self._failure is not None:
            more = {"partial_text": "".join(self._text)} if self._text else {}
            return error_response(self._failure, headers, **more)
        if self._routed is None or self._finished is None:
            return error_response(InternalError(f"the job ended without a result; this box's log has {job}"), headers)
        return JSONResponse(
            self._answer.whole(self._routed, "".join(self._text), self._finished, self._resumed_from), headers=headers
        )


def chat_endpoint(services: Services) -> Completions:
    """The ASGI endpoint of POST /v1/chat/completions."""
    return Completions(services, parse_chat)


def completion_endpoint(services: Services) -> Completions:
    """The ASGI endpoint of POST /v1/completions."""
    return Completions(services, parse_completion)


def model_list(services: Services) -> Callable[[Request], Any]:
    """GET /v1/models: every model that can be asked for here, with the boxes that hold it."""

    async def endpoint(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(listing) for listing in services.models()]})

    return endpoint


def model_by_id(services: Services) -> Callable[[Request], Any]:
    """GET /v1/models/{id}, by name or content hash."""

    async def endpoint(request: Request) -> Response:
        wanted = request.path_params["id"]
        for listing in services.models():
            if wanted in (listing.name, listing.hash):
                return JSONResponse(_model(listing))
        return error_response(ModelNotFoundError("no box that is connected holds this model; see GET /v1/models"))

    return endpoint


def _model(listing: ModelListing) -> dict[str, Any]:
    return {
        "id": listing.name,
        "object": "model",
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
                }
                for holder in listing.holders
            ],
        },
    }
