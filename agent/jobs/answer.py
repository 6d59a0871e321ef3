"""What an answer may hold: its order, its length in tokens and characters, its counts and times. Pure.

A box is believed no further than it can be checked. Tokens are counted here as they come, so an answer ends where its
own `max_tokens` (or the context that its box advertises) says, and `usage` is what this box has seen.
"""

from __future__ import annotations

from typing import Final

from fleet.errors import FleetError
from fleet.net.messages import Delta, Finished, InferRequest, Started

#: Characters an answer may have for each of its tokens. The longest token of common vocabularies has 128.
CHARS_PER_TOKEN: Final = 256
#: Characters beside: text that was held back because a stop string might begin in it.
CHARS_BESIDE: Final = 16 * 1024
#: Characters of one answer, whatever context its box advertises.
MAX_CHARS: Final = 16 * 1024 * 1024
#: Deltas without a token: the rest of what was held back comes in one.
MAX_TOKENLESS: Final = 16


class BadAnswerError(FleetError):
    """A box answered as no box should; what it sent last is not passed on, and it counts as failed."""

    code = "bad_answer"
    retryable = True


class AnswerCheck:
    """Follows one box's answer to one request. Every method raises BadAnswerError.

    `context_tokens` is what the box advertises for the model, 0 if that is unknown.
    """

    def __init__(self, request: InferRequest, context_tokens: int) -> None:
        asked = request.sampling.max_tokens
        limits = [limit for limit in (asked, context_tokens) if limit]
        self._most_tokens = min(limits) if limits else MAX_CHARS
        self._model = request.model
        self._context = context_tokens
        self._truncate = bool(request.truncate)
        self._logprobs = request.sampling.logprobs
        self._chars = 0
        self._tokenless = 0
        #: Tokens that have come, and whether the answer is complete.
        self.tokens = 0
        self.finished = False
        self.started: Started | None = None

    def start(self, event: Started) -> None:
        """The box has taken the job."""
        if self.started is not None:
            raise BadAnswerError("it started twice")
        if self._model.startswith("sha256:") and event.hash != self._model:
            raise BadAnswerError("it started another model than the one that was asked for")
        if self._context and event.prompt_tokens > self._context:
            raise BadAnswerError("it counts more tokens in the prompt than its context has")
        if not self._truncate and (event.cut_tokens or event.cut_messages):
            raise BadAnswerError("it left messages out without being asked to")
        self.started = event

    def delta(self, event: Delta) -> Started:
        """Some text; returns how the answer started."""
        if self.started is None:
            raise BadAnswerError("it sent tokens before it said that it had started")
        self.tokens += event.tokens
        if self.tokens > self._most_tokens:
            raise BadAnswerError(f"it sent more than {self._most_tokens} tokens")
        if not event.tokens:
            self._tokenless += 1
            if self._tokenless > MAX_TOKENLESS:
                raise BadAnswerError(f"it sent more than {MAX_TOKENLESS} pieces of text without a token")
        if event.logprobs and (
            len(event.logprobs) > event.tokens
            or any(len(one.top_logprobs) > self._logprobs for one in event.logprobs)
            or self._logprobs < 0
        ):
            raise BadAnswerError("it sent probabilities of more tokens than were asked for")
        self._chars += len(event.text)
        if self._chars > min(MAX_CHARS, CHARS_BESIDE + CHARS_PER_TOKEN * self.tokens):
            raise BadAnswerError(f"it sent {self._chars} characters for {self.tokens} tokens")
        return self.started

    def finish(self, event: Finished, elapsed_ms: float) -> tuple[Started, Finished]:
        """The end, as it may be told on: tokens as counted here, no time longer than the job took on this box."""
        if self.started is None:
            raise BadAnswerError("it finished before it had started")
        self.finished = True
        held = Finished(
            reason=event.reason,
            prompt_tokens=self.started.prompt_tokens,
            completion_tokens=self.tokens,
            prefill_ms=min(event.prefill_ms, elapsed_ms),
            decode_ms=min(event.decode_ms, elapsed_ms),
        )
        return self.started, held

    def end(self) -> None:
        """The box says that there is no more."""
        if not self.finished:
            raise BadAnswerError("it ended the answer without finishing it")
