"""Vectors of texts: a context of its own beside that of the sequences. Imported in the child process only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import llama_cpp as ll
import numpy as np

from agent.engine.chat import Span
from agent.engine.inbox import Inbox
from agent.engine.llama import Model
from agent.engine.protocol import Done, Embed, Up, Vectors
from agent.errors import AgentError, BadRequestError, ContextLengthError, EngineError, ModelLoadError

#: Tokens of one text at most, and of one step: the vectors of a text's tokens are pooled within a step.
MAX_TOKENS: Final = 2048
#: Texts in one step.
_TEXTS: Final = 16

_POOLINGS: Final = {
    "": ll.LLAMA_POOLING_TYPE_UNSPECIFIED,
    "mean": ll.LLAMA_POOLING_TYPE_MEAN,
    "cls": ll.LLAMA_POOLING_TYPE_CLS,
    "last": ll.LLAMA_POOLING_TYPE_LAST,
}


@dataclass(frozen=True)
class Texts:
    """A request whose texts are tokenised and fit."""

    job: Embed
    tokens: Sequence[Sequence[int]]


@dataclass
class _Open:
    texts: Texts
    next: int = 0
    took_ms: float = 0.0


@dataclass
class _Pool:
    """A context that pools in one way."""

    handle: Any
    batch: Any


def tokenise(model: Model, job: Embed, context_tokens: int) -> Texts:
    """The tokens of each text. Raises ContextLengthError with both numbers, BadRequestError for one without any."""
    room = min(MAX_TOKENS, context_tokens)
    found = []
    for index, text in enumerate(job.texts):
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


class Embedder:
    """The requests for vectors of one model; each `step` is one step of llama.cpp. All of it belongs to one thread."""

    def __init__(
        self, model: Model, inbox: Inbox[Any], send: Callable[[Up], None], *, context_tokens: int, threads: int
    ):
        self._model = model
        self._inbox = inbox
        self._send = send
        self._room = min(MAX_TOKENS, context_tokens)
        self._threads = threads
        self._pools: dict[str, _Pool] = {}
        self._open: deque[_Open] = deque()
        self._aborted = False
        # A step of long texts takes seconds on a small box. No cancel may wait for its end, of whatever request: the
        # agent would take this process to hang. Asked at each part of the model's graph, some hundred times a step.
        self._aborts = ll.ggml_abort_callback(self._abort)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._open)

    def add(self, texts: Texts) -> None:
        """Take a request in."""
        self._open.append(_Open(texts))

    def probe(self) -> float:
        """Tokens per second of a short text."""
        token = self._model.tokenize([Span("the")])[-1]
        texts = [[token] * min(32, self._room)]
        self._vectors("", texts)
        began = time.perf_counter()
        self._vectors("", texts)
        return len(texts[0]) / (time.perf_counter() - began)

    def step(self, fail: Callable[[int, AgentError], None]) -> None:
        """The vectors of some texts of the request whose turn it is; requests take turns."""
        cancelled = self._inbox.cancelled()
        for one in [one for one in self._open if one.texts.job.id in cancelled]:
            self._open.remove(one)
            self._end(one, "cancelled")
        if not self._open:
            return
        one = self._open.popleft()
        job = one.texts.job
        began = time.perf_counter()
        self._aborted = False
        try:
            vectors = self._vectors(job.pooling, self._chosen(one))
        except AgentError as error:
            if self._aborted:
                self._open.appendleft(one)  # again, or no more, once whoever is cancelled has been let go
            else:
                fail(job.id, error)
            return
        one.took_ms += (time.perf_counter() - began) * 1000
        self._send(Vectors(job.id, one.next, vectors.shape[1], vectors.astype("<f4").tobytes()))
        one.next += len(vectors)
        if one.next < len(job.texts):
            self._open.append(one)
        else:
            self._end(one, "stop")

    def _abort(self, _: object) -> bool:
        """Whether llama.cpp is to leave the step it is in."""
        self._aborted = self._aborted or bool(self._inbox.cancelled())
        return self._aborted

    def _chosen(self, one: _Open) -> Sequence[Sequence[int]]:
        """The next texts of a request that fit into a step."""
        chosen: list[Sequence[int]] = []
        size = 0
        for tokens in one.texts.tokens[one.next : one.next + _TEXTS]:
            size += len(tokens)
            if chosen and size > self._room:
                break
            chosen.append(tokens)
        return chosen

    def _end(self, one: _Open, reason: Any) -> None:
        self._inbox.over(one.texts.job.id)
        count = sum(map(len, one.texts.tokens))
        self._send(Done(one.texts.job.id, reason, count, 0, round(one.took_ms, 3), 0.0))

    def _vectors(self, pooling: str, texts: Sequence[Sequence[int]]) -> np.ndarray:
        pool = self._pools.get(pooling) or self._new_pool(pooling)
        memory = ll.llama_get_memory(pool.handle)
        if memory:
            ll.llama_memory_clear(memory, True)
        batch, at = pool.batch, 0
        for number, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.logits[at] = 1, 1
                batch.seq_id[at][0] = number
                at += 1
        batch.n_tokens = at
        code = ll.llama_decode(pool.handle, batch)
        if code != 0:
            raise EngineError(f"llama.cpp failed to embed (code {code})")
        size = ll.llama_model_n_embd(self._model.handle)
        rows = []
        for number in range(len(texts)):
            found = ll.llama_get_embeddings_seq(pool.handle, number)
            if not found:
                raise EngineError("llama.cpp gave no vector")
            rows.append(np.ctypeslib.as_array(found, shape=(size,)).astype(np.float64))
        vectors = np.array(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or not lengths.all():
            raise EngineError("the model gave a vector without a direction")
        return np.asarray(vectors / lengths)

    def _new_pool(self, pooling: str) -> _Pool:
        params = ll.llama_context_default_params()
        # A text is pooled within one step, so a step holds the longest one.
        params.n_ctx = params.n_batch = params.n_ubatch = self._room
        params.n_seq_max = _TEXTS
        params.kv_unified = True
        params.swa_full = False
        params.n_threads = params.n_threads_batch = self._threads
        params.embeddings = True
        params.no_perf = True
        params.abort_callback = self._aborts
        kind = _POOLINGS[pooling]
        handle = self._context(params, kind)
        if ll.llama_pooling_type(handle) == ll.LLAMA_POOLING_TYPE_NONE:
            # A model that was not made to give vectors says nothing of how; the mean of its tokens is what is usual.
            ll.llama_free(handle)
            handle = self._context(params, ll.LLAMA_POOLING_TYPE_MEAN)
        pool = _Pool(handle, ll.llama_batch_init(self._room, 0, 1))
        self._pools[pooling] = pool
        return pool

    def _context(self, params: Any, pooling: int) -> Any:
        params.pooling_type = pooling
        handle = ll.llama_init_from_model(self._model.handle, params)
        if not handle:
            raise ModelLoadError("llama.cpp cannot make a context for vectors")
        return handle
