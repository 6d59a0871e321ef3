"""The requests for vectors of one model, and whose turn it is. Imported in the child process only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.engine.chat import Span
from agent.engine.embedding_context import AbortedError, InParts, Reader, Whole, context_params
from agent.engine.inbox import Inbox
from agent.engine.llama import Model
from agent.engine.memory import EMBEDDED_TEXTS, EMBEDDED_TOKENS
from agent.engine.protocol import Done, Embed, Load, Up, Vectors
from agent.engine.schedule import ALONE_LIMIT, STEP_LIMIT
from agent.engine.step_size import StepSize
from agent.errors import AgentError, BadRequestError, ContextLengthError


@dataclass(frozen=True)
class Texts:
    """A request whose texts are tokenised and fit."""

    job: Embed
    tokens: Sequence[Sequence[int]]


@dataclass(eq=False)
class _Open:
    texts: Texts
    next: int = 0
    took_ms: float = 0.0


def tokenise(model: Model, job: Embed, context_tokens: int) -> Texts:
    """The tokens of each text. Raises ContextLengthError with both numbers, BadRequestError for one without any."""
    room = min(EMBEDDED_TOKENS, context_tokens)
    found = []
    for index, text in enumerate(job.texts):
        least = -(-len(text.encode("utf-8", "replace")) // model.longest_token)
        if least > room:  # a tokenizer may take seconds to say so
            raise ContextLengthError(
                f"input {index} has {least} tokens or more, and vectors are of at most {room}; split it",
                details={"prompt_tokens": least, "context_tokens": room},
            )
        tokens = model.tokenize([Span(text, plain=True)], ended=True)
        if not text or not tokens:
            raise BadRequestError(f"input {index} is empty", details={"param": "input"})
        if len(tokens) > room:
            raise ContextLengthError(
                f"input {index} has {len(tokens)} tokens, and vectors are of at most {room}; split it",
                details={"prompt_tokens": len(tokens), "context_tokens": room},
            )
        found.append(tokens)
    return Texts(job, found)


def chosen(tokens: Sequence[Sequence[int]], room: int) -> Sequence[Sequence[int]]:
    """The first of these texts that are read together: at least one, and no more than fit into `room` tokens."""
    count = size = 0
    for one in tokens[:EMBEDDED_TEXTS]:
        size += len(one)
        if count and size > room:
            break
        count += 1
    return tokens[:count]


class Embedder:
    """The requests for vectors; each `step` is one step of llama.cpp. All of it belongs to one thread.

    Requests take turns, some texts at a time. A step beside sequences that generate is as long as theirs may be.
    """

    def __init__(
        self,
        inbox: Inbox[Any],
        send: Callable[[Up], None],
        reader: Callable[[Callable[[], bool]], Reader],
        *,
        room: int,
        hear: Callable[[], None],
    ) -> None:
        """`reader` makes what reads texts, once there are any, and is given what says whether a step is to be left.

        `room` are tokens that are read together. `hear` takes in what has come meanwhile; it is called within a step.
        """
        self._inbox = inbox
        self._send = send
        self._make = reader
        self._made: Reader | None = None
        self._room = room
        self._hear = hear
        self._open: deque[_Open] = deque()
        #: The request whose texts are being read, and those texts.
        self._now: _Open | None = None
        self._texts: Sequence[Sequence[int]] = ()
        self._sizes = StepSize()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._open or self._now)

    def add(self, texts: Texts) -> None:
        """Take a request in."""
        self._open.append(_Open(texts))

    def rate(self, token: int, count: int) -> float:
        """Tokens per second of a text of `count` times a token; to be asked while it is not busy. Raises AgentError."""
        reader, done = self._reader, 0
        count = min(count, self._room)
        reader.begin([[token] * count], "")
        began = time.perf_counter()
        while done < count:
            done += reader.advance(count)[0]
        return count / (time.perf_counter() - began)

    def step(self, fail: Callable[[int, AgentError], None], *, alone: bool) -> None:
        """One step for the request whose turn it is; `alone` where no sequence waits for its end."""
        self._let_go()
        if self._now is None and not self._open:
            return
        began = time.perf_counter()
        try:
            if self._now is None:
                self._now = one = self._open.popleft()
                self._texts = chosen(one.texts.tokens[one.next :], self._room)
                self._reader.begin(self._texts, one.texts.job.pooling)
            one = self._now
            count, vectors = self._reader.advance(self._sizes.next(ALONE_LIMIT if alone else STEP_LIMIT))
        except AbortedError:
            return  # its own cancel ended it; the next step lets it go
        except AgentError as error:
            failed, self._now = self._now, None
            if failed is not None:
                fail(failed.texts.job.id, error)
            return
        took = time.perf_counter() - began
        self._sizes.note(count, took)
        one.took_ms += took * 1000
        if vectors is None:
            return
        self._now = None
        self._send(Vectors(one.texts.job.id, one.next, vectors.shape[1], vectors.astype("<f4").tobytes()))
        one.next += len(self._texts)
        if one.next < len(one.texts.tokens):
            self._open.append(one)
        else:
            self._end(one, "stop")

    @property
    def _reader(self) -> Reader:
        if self._made is None:
            self._made = self._make(self._abort)
        return self._made

    def _let_go(self) -> None:
        """End what has been cancelled; texts that are being read are begun no more."""
        cancelled = self._inbox.cancelled()
        if not cancelled:
            return
        if self._now is not None and self._now.texts.job.id in cancelled:
            self._open.append(self._now)
            self._now = None
        for one in [one for one in self._open if one.texts.job.id in cancelled]:
            self._open.remove(one)
            self._end(one, "cancelled")

    def _abort(self) -> bool:
        """Whether llama.cpp is to leave the step it is in: only where its own request is cancelled.

        A step of long texts takes seconds on a small box, and no cancel may wait for its end: the agent would take this
        process to hang. Others are let go from in here, and do not cost it the step: who starts and cancels all the
        time would keep it from ever coming to its end.
        """
        cancelled = self._inbox.cancelled()
        if not cancelled or self._now is None:
            return False
        if self._now.texts.job.id in cancelled:
            return True
        self._hear()  # it may have come and gone within this step
        self._let_go()
        return False

    def _end(self, one: _Open, reason: Any) -> None:
        self._inbox.over(one.texts.job.id)
        count = sum(map(len, one.texts.tokens))
        self._send(Done(one.texts.job.id, reason, count, 0, round(one.took_ms, 3), 0.0))


def reader_of(model: Model, load: Load, *, room: int) -> Callable[[Callable[[], bool]], Reader]:
    """What makes the reader of a model's texts; see Embedder."""

    def make(abort: Callable[[], bool]) -> Reader:
        params = context_params(room, threads=load.threads, flash=load.flash_attention)
        if load.whole:
            return Whole(model, params, abort=abort)
        return InParts(model, params, own=load.pooling)

    return make
