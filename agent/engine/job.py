"""One job in the engine, between the caller who reads its events and the child who makes them."""

from __future__ import annotations

import json
import math

import trio

from agent.engine.fair_queue import LOCAL
from agent.engine.forecast import work_of
from agent.engine.protocol import Embed, Failed, ProtocolError, Submit, encode
from agent.errors import AgentError, BadRequestError, ContextLengthError, EngineError
from fleet.net.messages import ChatMessage, Delta, Embedded, Finished, InferRequest, Started

Event = Started | Delta | Embedded | Finished

#: Events of a job that are no token: its start, its end, and text that was held back to the end.
_BESIDES_TOKENS = 4


def asker_of(request: InferRequest) -> str:
    """Who a job is for, as the queue knows them: the peer that asked for it, or this box's own clients."""
    return request.route[0] if request.route else LOCAL


async def comes_in_time(turn: trio.Event, request: InferRequest) -> bool:
    """Whether a job's turn comes before the time is over that it may wait for it. Cancel-safe."""
    with trio.move_on_after(math.inf if request.begin_ms is None else request.begin_ms / 1000):
        await turn.wait()
    return turn.is_set()


class QueuedJob:
    """A job from its admission to its end.

    Its events are kept here until the caller takes them, so that a slow caller never keeps the agent from reading
    what the child says; there are at most as many as the job may have tokens, or texts.
    """

    def __init__(self, id: int, request: InferRequest, context_tokens: int) -> None:
        """Raises BadRequestError when the request does not fit a message to the child."""
        self.id = id
        self.request = request
        self.asker = asker_of(request)
        self._began = 0.0
        self._turn = trio.Event()
        self.work = work_of(request)
        #: Set when the child no longer has the job, or never will.
        self.left_child = trio.Event()
        most = len(request.texts) or min(request.sampling.max_tokens or context_tokens, context_tokens)
        self._send, self._receive = trio.open_memory_channel[Event | AgentError](most + _BESIDES_TOKENS)
        try:
            self.frame = encode(_message(id, request, self.asker))
        except (ProtocolError, UnicodeEncodeError) as error:
            raise BadRequestError(f"the request cannot be run: {error}") from None

    @property
    def began(self) -> float:
        """When the child was given it, on trio's clock; 0 before that."""
        return self._began

    @began.setter
    def began(self, now: float) -> None:
        self._began = now
        self._turn.set()

    async def turn(self) -> bool:
        """Wait until the child has the job, or it has ended before that; False where the time it may wait is over."""
        return await comes_in_time(self._turn, self.request)

    def put(self, event: Started | Delta | Embedded) -> bool:
        """Take an event from the child; False when it sent more than the job may have."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            pass  # the caller is gone and a cancel is on its way
        return True

    def end(self, last: Finished | Failed | AgentError | None) -> None:
        """The child is done with the job, or never comes to it; None when the caller asked for that."""
        self.left_child.set()
        self._turn.set()
        if isinstance(last, Failed):
            last = _error_of(last)
        try:
            if last is not None:
                self._send.send_nowait(last)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._send.close()

    async def next(self) -> Event:
        """The next event, Finished being the last. Raises the AgentError that ended the job. Cancel-safe."""
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            raise EngineError("the engine gave the job up") from None
        if isinstance(event, AgentError):
            raise event
        return event

    def close(self) -> None:
        """The caller takes no more events."""
        self._receive.close()


def _message(id: int, request: InferRequest, asker: str) -> Submit | Embed:
    """The job as the child is told of it."""
    if request.kind == "embedding":
        return Embed(id, request.texts, request.pooling)
    sampling = request.sampling
    return Submit(
        id=id,
        kind=request.kind,
        messages=tuple((message.role, message.content, _more(message)) for message in request.messages),
        prompt=request.prompt,
        prefix=request.prefix,
        max_tokens=sampling.max_tokens or 0,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=-1 if sampling.seed is None else sampling.seed,
        stop=sampling.stop,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repeat_penalty=sampling.repeat_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        logprobs=sampling.logprobs,
        output=request.output,
        output_text=request.output_text,
        tools=request.tools,
        tool_choice=request.tool_choice,
        truncate=request.truncate,
        session=request.session,
        owner=asker,
    )


def _more(message: ChatMessage) -> str:
    """The fields of a message beside its role and content, as JSON with the names that chat templates know."""
    more: dict[str, object] = {}
    if message.name:
        more["name"] = message.name
    if message.tool_call_id:
        more["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        more["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return json.dumps(more, ensure_ascii=False) if more else ""


def _error_of(failed: Failed) -> AgentError:
    match failed.code:
        case "bad_request":
            return BadRequestError(failed.message, details=failed.details)
        case "context_length_exceeded":
            return ContextLengthError(failed.message, details=failed.details)
        case _:
            return EngineError(failed.message, details=failed.details)
