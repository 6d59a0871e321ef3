"""A server's stream of chunks as the events of a job: order, counts and lengths checked. Pure; time is passed in.

Who passes a job on counts tokens for itself and believes no answer that is longer than `max_tokens`, or than the
context that the box advertises. So a token is counted for each piece that comes, or as many as the server says where it
does with every piece, and never more than there may be; text past that comes with the end and counts for nothing. The
call of a function comes with the end too, as text that is written as models write one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from agent.engine.external.listing import number
from agent.engine.external.trouble import ServerTroubleError
from agent.engine.structure.tools import FUNCTION_NAME, call_text
from fleet.errors import MessageError
from fleet.net.messages import Delta, Finished, InferRequest, Started, TokenLogprob, parse_logprobs

#: Characters of one Delta, and of what comes past the last token.
_MAX_TEXT: Final = 32 * 1024
_MAX_SURPLUS: Final = 8 * 1024
#: Events in a row that bring nothing.
_MAX_EMPTY: Final = 1000
#: Characters of the arguments of a call, and tokens of one piece whose logprobs are passed on (`Delta`).
_MAX_ARGUMENTS: Final = 64 * 1024
_MAX_LOGPROBS: Final = 64
#: Bytes that one token is taken to have at most where a piece is longer: then it holds several.
_BYTES_PER_TOKEN: Final = 128
#: Bytes of text per token, to estimate a prompt by, and the tokens that a template adds to each message.
_USUAL_BYTES_PER_TOKEN: Final = 4
_PER_MESSAGE: Final = 4


class ServerRefusal(Exception):  # noqa: N818 - the answer itself, for `failure` to judge
    """The server reported an error in the middle of its stream; `body` is that event, decoded."""

    def __init__(self, body: object) -> None:
        super().__init__("refused")
        self.body = body


class AnswerReader:
    """Reads the answer to one job. Times are seconds of one clock; `asked` is when the request was sent.

    `most` is how many tokens the answer may have. When `done` is true the rest of the stream is of no interest.
    """

    def __init__(self, request: InferRequest, *, name: str, hash: str, context_tokens: int, asked: float) -> None:
        self._request = request
        self._name = name
        self._hash = hash
        self._context = context_tokens
        self.most = min(request.sampling.max_tokens or context_tokens, context_tokens)
        self.asked = asked
        self._started: Started | None = None
        self._reason: Literal["stop", "length"] | None = None
        self._surplus: list[str] = []
        self._surplus_size = 0
        self._empty = 0
        self._half = ""
        self._function = ""
        self._arguments = ""
        self._prompt = 0
        self._complete = False
        self.tokens = 0
        self.first: float | None = None
        self.last: float = asked

    @property
    def done(self) -> bool:
        """Whether the answer is complete: the server has said so, or it has all the tokens it may have."""
        return self._complete

    @property
    def ended(self) -> bool:
        """Whether the server has given the reason why there is no more text; counts may follow."""
        return self._complete or self._reason is not None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt by the server's own count; 0 as long as it has not said."""
        return self._prompt

    def take(self, data: str, now: float) -> Iterator[Started | Delta]:
        """One event of the stream. Raises ServerTroubleError for garbage, ServerRefusal for an error in the stream."""
        if self._complete:
            return
        if data.strip() == "[DONE]":
            self._complete = True
            return
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise ServerTroubleError("sends an event that is no JSON") from None
        if not isinstance(chunk, dict):
            raise ServerTroubleError("sends an event that is no object")
        if chunk.get("error"):
            raise ServerRefusal(chunk)
        self._empty += 1
        if self._empty > _MAX_EMPTY:
            raise ServerTroubleError(f"sends {_MAX_EMPTY} events in a row that bring nothing")
        counted = self._counts(chunk)
        for choice in _first_choice(chunk):
            text, hidden = self._text(choice)
            if text or hidden:
                self._empty = 0
                yield from self._piece(text, hidden, counted, self._logprobs(choice), now)
            reason = choice.get("finish_reason")
            if isinstance(reason, str):
                self._reason = "length" if reason == "length" else "stop"

    def finish(self) -> Iterator[Started | Delta | Finished]:
        """The last events, once the stream is over. Raises ServerTroubleError where it ended before the answer did."""
        if self._reason is None and not self._complete:
            raise ServerTroubleError("ended its answer half-way")
        if self._started is None:
            yield self._start()
        rest = "".join(self._surplus) + ("\ufffd" if self._half else "")
        if self._function and self._request.tools:
            rest += call_text(self._function, self._arguments, "hermes")
        for at in range(0, len(rest), _MAX_TEXT):
            yield Delta(text=rest[at : at + _MAX_TEXT], tokens=0)
        first = self.first if self.first is not None else self.last
        yield Finished(
            reason=self._reason or "stop",
            prompt_tokens=self._prompt or self._estimate(),
            completion_tokens=self.tokens,
            prefill_ms=max(0.0, first - self.asked) * 1000,
            decode_ms=max(0.0, self.last - first) * 1000,
        )

    def _counts(self, chunk: Mapping[str, Any]) -> int | None:
        """Note what a chunk says of counts; the answer's tokens so far, where it says that with every piece."""
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if isinstance(usage, dict):
            self._prompt = number(usage.get("prompt_tokens"), self._context) or self._prompt
            return number(usage.get("completion_tokens")) or None
        if isinstance(timings, dict) and "cache_n" in timings:
            self._prompt = number(number(timings.get("prompt_n")) + number(timings["cache_n"]), self._context)
            return number(timings.get("predicted_n")) or None
        return None

    def _text(self, choice: Mapping[str, Any]) -> tuple[str, int]:
        """The text of a choice, and the length of what took tokens though it is no text: thoughts, a call."""
        if self._request.kind == "completion":
            return self._whole(choice.get("text")), 0
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return "", 0
        thoughts = [delta[key] for key in ("reasoning_content", "reasoning") if isinstance(delta.get(key), str)]
        return self._whole(delta.get("content")), max(map(len, thoughts), default=0) + self._called(delta)

    def _called(self, delta: Mapping[str, Any]) -> int:
        """Note a piece of the call of a function; returns its length. An answer has one call, the first."""
        calls = delta.get("tool_calls")
        if not isinstance(calls, list) or not calls or not isinstance(calls[0], dict):
            return 0
        function = calls[0].get("function")
        if not isinstance(function, dict):
            return 0
        name, arguments = function.get("name"), function.get("arguments")
        size = 0
        if calls[0].get("index", 0) == 0:
            if isinstance(name, str) and FUNCTION_NAME.fullmatch(name) and not self._function:
                self._function = name
            if isinstance(arguments, str):
                size = len(arguments)
                self._arguments += self._whole(arguments)
                if len(self._arguments) > _MAX_ARGUMENTS:
                    raise ServerTroubleError(f"calls a function with more than {_MAX_ARGUMENTS} characters")
        return max(1, size)

    def _logprobs(self, choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
        """What a server says of the tokens of a piece, where that was asked for and is in order."""
        found = choice.get("logprobs")
        if self._request.sampling.logprobs < 0 or not isinstance(found, dict):
            return ()
        try:
            return parse_logprobs(json.dumps(_in_order(found.get("content"), self._request.sampling.logprobs)))
        except MessageError:
            return ()

    def _whole(self, text: object) -> str:
        """Text that can be encoded: JSON may hold half of a surrogate pair, its other half coming in the next piece."""
        if not isinstance(text, str) or not text:
            return ""
        if not self._half and text.isascii():
            return text
        text = self._half + text
        self._half = ""
        if "\ud800" <= text[-1] <= "\udbff":
            self._half, text = text[-1], text[:-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _piece(
        self, text: str, hidden: int, counted: int | None, logprobs: tuple[TokenLogprob, ...], now: float
    ) -> Iterator[Started | Delta]:
        if self._started is None:
            yield self._start()
        if self.first is None:
            self.first = now
        self.last = now
        size = len(text.encode()) + hidden
        took = len(logprobs) or max(1, -(-size // _BYTES_PER_TOKEN))
        tokens = min(max(1, counted - self.tokens) if counted is not None else took, self.most - self.tokens)
        if tokens <= 0:
            self._past_the_end(text)
            return
        self.tokens += tokens
        for at in range(0, max(1, len(text)), _MAX_TEXT):
            said = logprobs if len(logprobs) == tokens <= _MAX_LOGPROBS and not at else ()
            yield Delta(text=text[at : at + _MAX_TEXT], tokens=0 if at else tokens, logprobs=said)

    def _past_the_end(self, text: str) -> None:
        self._surplus_size += len(text)
        if self._surplus_size > _MAX_SURPLUS or not text:
            # It has said all that it may, or thinks on without showing it: what is missing is only its end.
            self._reason, self._complete = "length", True
            return
        self._surplus.append(text)

    def _start(self) -> Started:
        self._started = Started(model=self._name, hash=self._hash, prompt_tokens=self._prompt or self._estimate())
        return self._started

    def _estimate(self) -> int:
        """About how many tokens the prompt has, where the server says nothing in time."""
        request = self._request
        texts = [request.prompt, request.prefix, *(message.content for message in request.messages)]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return min(self._context, size // _USUAL_BYTES_PER_TOKEN + _PER_MESSAGE * len(request.messages) + 1)


def _in_order(content: object, most: int) -> object:
    """Entries as `parse_logprobs` reads them: no null for unknown bytes, and no more tokens than were asked for."""
    rows = [dict(row) for row in content if isinstance(row, dict)] if isinstance(content, list) else []
    for row in rows:
        row["bytes"] = row.get("bytes") or []
        likely = row.get("top_logprobs")
        likely = likely[:most] if isinstance(likely, list) else []
        row["top_logprobs"] = [{**one, "bytes": one.get("bytes") or []} for one in likely if isinstance(one, dict)]
    return rows


def _first_choice(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return []
    return [choices[0]] if choices[0].get("index", 0) == 0 else []
