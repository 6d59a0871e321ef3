"""Job events as the OpenAI API sends them: one JSON body, or a stream of chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from agent.engine.structure.calls import CallParser, Piece, Text
from agent.http.errors import Problem
from agent.http.exchange import Exchange
from agent.http.openai_pieces import chat_logprobs, completion_logprobs, delta_of, message_of
from agent.http.openai_schema import Asked
from agent.http.served import served_facts, served_headers
from agent.http.sse import DONE, event
from agent.jobs.job import JobEvent, Resumed, Routed
from fleet.net.messages import Delta, Finished, TokenLogprob


class _Answer:
    """What both forms share: who serves, and the fields of every object."""

    def __init__(self, exchange: Exchange, asked: Asked) -> None:
        self._exchange = exchange
        self._chat = asked.kind == "chat"
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + asked.job.request.job.removeprefix("job-")
        self._created = int(time.time())
        self._routed: Routed | None = None
        #: Whether the answer is a call for certain: there is no text then, also where it is cut before the arguments.
        self._certain = bool(asked.functions) and asked.job.request.tool_choice not in ("", "auto", "none")
        self._calls = CallParser(asked.functions, certain=self._certain) if asked.functions else None
        #: Probabilities that have not been sent, and where the text of the first of them begins.
        self._likely: list[TokenLogprob] = []
        self._offset = 0
        #: The end of the answer is on its way; the server reports the exchange as closed after that, as it should.
        self.done = False

    def _served(self) -> Routed:
        if self._routed is None:
            raise RuntimeError("a job sent text before it said where it runs")
        return self._routed

    def _object(self, name: str, choices: list[dict[str, object]]) -> dict[str, object]:
        served = self._served()
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": served.model,
            "system_fingerprint": "fp_" + served.model_hash.removeprefix("sha256:")[:12],
            "choices": choices,
        }

    def _logprobs(self) -> dict[str, object] | None:
        """What came of probabilities and has not been sent."""
        tokens, self._likely = self._likely, []
        if not tokens:
            return None
        offset, self._offset = self._offset, self._offset + sum(len(one.token) for one in tokens)
        return chat_logprobs(tokens) if self._chat else completion_logprobs(tokens, offset)

    def _reason(self, finished: Finished) -> str:
        called = self._calls is not None and self._calls.called
        return "tool_calls" if called and finished.reason == "stop" else finished.reason


class WholeAnswer(_Answer):
    """Collects the text and sends one JSON body at the end."""

    def __init__(self, exchange: Exchange, asked: Asked) -> None:
        super().__init__(exchange, asked)
        self._texts: list[str] = []
        self._resumed_from: list[str] = []

    async def emit(self, event: JobEvent) -> None:
        """Take one event of the job; Finished sends the response."""
        match event:
            case Routed():
                self._routed = event
            case Resumed():
                self._routed = event.routed
                self._resumed_from.append(event.from_name)
            case Delta():
                self._texts.append(event.text)
                self._likely += event.logprobs
            case Finished():
                self.done = True
                await self._send(event)

    async def fail(self, problem: Problem) -> None:
        """Answer with an error; text that was generated before it goes along in its details."""
        text = "".join(self._texts)
        extra = {"partial_text": text} if text else None
        headers = problem.headers() + (served_headers(self._routed) if self._routed is not None else [])
        await self._exchange.reply(problem.status, problem.body(extra), headers)

    async def _send(self, finished: Finished) -> None:
        text = "".join(self._texts)
        choice: dict[str, object] = {"index": 0}
        if self._chat:
            pieces: Sequence[Piece] = [Text(text)]
            if self._calls is not None:
                pieces = [*self._calls.push(text), *self._calls.finish()]
            none = {"content": None} if self._certain and not pieces else {}
            choice["message"] = message_of(pieces) | none
        else:
            choice["text"] = text
        choice |= {"logprobs": self._logprobs(), "finish_reason": self._reason(finished)}
        body = self._object("chat.completion" if self._chat else "text_completion", [choice])
        body["usage"] = _usage(finished)
        resumed = {"resumed_from": self._resumed_from} if self._resumed_from else {}
        body["shoal"] = {**served_facts(self._served()), **_times(finished), **resumed}
        await self._exchange.reply(200, body, served_headers(self._served()))


class StreamAnswer(_Answer):
    """Sends every event as it comes. The status goes out with Routed, so an error before it has one of its own."""

    def __init__(self, exchange: Exchange, asked: Asked) -> None:
        super().__init__(exchange, asked)
        self._include_usage = asked.include_usage
        self._name = "chat.completion.chunk" if self._chat else "text_completion"

    async def emit(self, event: JobEvent) -> None:
        """Send one event of the job at once."""
        match event:
            case Delta():
                # A token can end within a character: its text comes with the next one.
                if event.logprobs:
                    self._likely += event.logprobs
                if self._calls is not None:
                    if chunks := self._pieces(self._calls.push(event.text)):
                        await self._exchange.write(chunks)
                elif event.text:
                    await self._exchange.write(self._chunk({"content": event.text}))
            case Routed():
                self._routed = event
                headers = [*served_headers(self._served()), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]
                await self._exchange.start(200, "text/event-stream; charset=utf-8", headers)
                first = self._chunk({"role": "assistant", "content": ""}, shoal=served_facts(self._served()))
                await self._exchange.write(first)
            case Resumed():
                self._routed = event.routed
                note = {"resumed_from": event.from_name, **served_facts(self._served())}
                await self._exchange.write(self._chunk({}, shoal=note))
            case Finished():
                await self._finish(event)

    async def fail(self, problem: Problem) -> None:
        """Before the first event: an error status. After it: an error chunk, and the end without [DONE]."""
        if self._exchange.started:
            await self._exchange.end(event({**problem.body(), "shoal": {"status": problem.status}}))
        else:
            await self._exchange.refuse(problem)

    async def _finish(self, finished: Finished) -> None:
        last = self._pieces(self._calls.finish()) if self._calls is not None else b""
        last += self._chunk({}, finish_reason=self._reason(finished), shoal=_times(finished))
        if self._include_usage:
            last += event({**self._object(self._name, []), "usage": _usage(finished)})
        self.done = True
        await self._exchange.end(last + DONE)

    def _pieces(self, pieces: Sequence[Piece]) -> bytes:
        return b"".join(self._chunk(delta_of(piece)) for piece in pieces)

    def _chunk(
        self,
        delta: Mapping[str, object],
        *,
        finish_reason: str | None = None,
        shoal: Mapping[str, object] | None = None,
    ) -> bytes:
        choice: dict[str, object] = {"index": 0}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        choice |= {"logprobs": self._logprobs() if self._likely else None, "finish_reason": finish_reason}
        chunk: dict[str, Any] = self._object(self._name, [choice])
        if self._include_usage:
            chunk["usage"] = None
        if shoal is not None:
            chunk["shoal"] = shoal
        return event(chunk)


def _usage(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }


def _times(finished: Finished) -> dict[str, float]:
    return {"prefill_ms": round(finished.prefill_ms, 2), "decode_ms": round(finished.decode_ms, 2)}
