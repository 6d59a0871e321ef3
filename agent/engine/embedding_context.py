"""The context of llama.cpp that reads texts for their vectors. Imported in the child process only.

A model that looks back only reads a text in parts, so that others have their turn between them. One that looks both
ways has to have all of it in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, Protocol

import llama_cpp as ll
import numpy as np

from agent.engine.context import FLASH
from agent.engine.llama import Model
from agent.engine.memory import EMBEDDED_TEXTS, embedding_step
from agent.engine.pooling import Pooler, Pooling, normalised
from agent.errors import EngineError, ModelLoadError

_POOLINGS: Final = {
    "": ll.LLAMA_POOLING_TYPE_UNSPECIFIED,
    "mean": ll.LLAMA_POOLING_TYPE_MEAN,
    "cls": ll.LLAMA_POOLING_TYPE_CLS,
    "last": ll.LLAMA_POOLING_TYPE_LAST,
}
_ABORTED: Final = 2


class AbortedError(Exception):
    """A step was left before its end; nothing of it is kept."""


class Reader(Protocol):
    """Reads some texts at a time."""

    def begin(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        """Go on to these texts, which fit together, whatever became of the last ones. Raises ModelLoadError."""

    def advance(self, most: int) -> tuple[int, np.ndarray | None]:
        """One step, of at most `most` tokens where it can be in parts: how many it had, and the vectors at the end.

        Raises AbortedError, EngineError; the texts are then to be begun again.
        """


class InParts:
    """Reads texts in steps of some tokens; all poolings share one context."""

    def __init__(self, model: Model, params: Any, *, own: Pooling) -> None:
        """`params` as of `context_params`; `own` is what an empty pooling means. Raises ModelLoadError."""
        self._step: int = min(params.n_ctx, embedding_step(model.vocab_size))
        self._own: Pooling = own
        params.n_batch = params.n_ubatch = self._step
        params.pooling_type = ll.LLAMA_POOLING_TYPE_NONE
        self._handle = _context(model, params)
        self._size: int = ll.llama_model_n_embd(model.handle)
        self._batch = ll.llama_batch_init(self._step, 0, 1)
        self._left: list[tuple[int, int, int]] = []
        self._at = 0
        self._pooler = Pooler([1], "", self._size)

    def begin(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        """See Reader."""
        _clear(self._handle)
        self._left = list(_tokens_of(texts))
        self._at = 0
        self._pooler = Pooler([len(tokens) for tokens in texts], pooling or self._own, self._size)

    def advance(self, most: int) -> tuple[int, np.ndarray | None]:
        """See Reader."""
        count = min(max(1, most), self._step, len(self._left) - self._at)
        _fill(self._batch, self._left[self._at : self._at + count])
        _decode(self._handle, self._batch)
        found = ll.llama_get_embeddings(self._handle)
        if not found:
            raise EngineError("llama.cpp gave no vector")
        self._pooler.add(self._at, np.ctypeslib.as_array(found, shape=(count, self._size)))
        self._at += count
        return count, self._pooler.vectors() if self._at == len(self._left) else None


class Whole:
    """Reads texts in one step, and lets llama.cpp pool. There is one context at a time, for the last pooling asked for.

    `abort` is asked some hundred times in a step whether it is to be left.
    """

    def __init__(self, model: Model, params: Any, *, abort: Callable[[], bool]) -> None:
        """`params` as of `context_params`."""
        self._model = model
        self._abort = ll.ggml_abort_callback(lambda _: abort())
        self._params = params
        self._params.abort_callback = self._abort
        self._pooling: Pooling | None = None
        self._handle: Any = None
        self._batch = ll.llama_batch_init(params.n_batch, 0, 1)
        self._texts: Sequence[Sequence[int]] = ()

    def begin(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        """See Reader."""
        if pooling != self._pooling:
            self._open(pooling)
        _clear(self._handle)
        self._texts = texts

    def advance(self, most: int) -> tuple[int, np.ndarray]:
        """See Reader; all of it at once."""
        tokens = list(_tokens_of(self._texts))
        _fill(self._batch, tokens)
        _decode(self._handle, self._batch)
        size = ll.llama_model_n_embd(self._model.handle)
        rows = []
        for number in range(len(self._texts)):
            found = ll.llama_get_embeddings_seq(self._handle, number)
            if not found:
                raise EngineError("llama.cpp gave no vector")
            rows.append(np.ctypeslib.as_array(found, shape=(size,)).astype(np.float64))
        return len(tokens), normalised(np.array(rows))

    def _open(self, pooling: Pooling) -> None:
        self._close()
        params = self._params
        params.pooling_type = _POOLINGS[pooling]
        self._handle = _context(self._model, params)
        if ll.llama_pooling_type(self._handle) == ll.LLAMA_POOLING_TYPE_NONE:
            # A model that was not made to give vectors says nothing of how; the mean of its tokens is what is usual.
            self._close()
            params.pooling_type = ll.LLAMA_POOLING_TYPE_MEAN
            self._handle = _context(self._model, params)
        self._pooling = pooling

    def _close(self) -> None:
        if self._handle is not None:
            ll.llama_free(self._handle)
        self._handle = self._pooling = None


def context_params(room: int, *, threads: int, flash: str) -> Any:
    """The parameters of a context that reads `room` tokens of texts together, all in one step."""
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = room
    params.flash_attn_type = FLASH[flash]
    params.n_seq_max = EMBEDDED_TEXTS
    params.kv_unified = True
    params.swa_full = False
    params.n_threads = params.n_threads_batch = threads
    params.embeddings = True
    params.no_perf = True
    return params


def _context(model: Model, params: Any) -> Any:
    handle = ll.llama_init_from_model(model.handle, params)
    if not handle:
        raise ModelLoadError("llama.cpp cannot make a context for vectors")
    return handle


def _clear(handle: Any) -> None:
    memory = ll.llama_get_memory(handle)
    if memory:
        ll.llama_memory_clear(memory, True)


def _tokens_of(texts: Sequence[Sequence[int]]) -> chain[tuple[int, int, int]]:
    """Number of the text, position and token, of every token."""
    return chain.from_iterable(
        [(number, position, token) for position, token in enumerate(tokens)] for number, tokens in enumerate(texts)
    )


def _fill(batch: Any, tokens: Sequence[tuple[int, int, int]]) -> None:
    for at, (number, position, token) in enumerate(tokens):
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.logits[at] = 1, 1
        batch.seq_id[at][0] = number
    batch.n_tokens = len(tokens)


def _decode(handle: Any, batch: Any) -> None:
    code = ll.llama_decode(handle, batch)
    if code == _ABORTED:
        raise AbortedError
    if code != 0:
        raise EngineError(f"llama.cpp failed to embed (code {code})")
