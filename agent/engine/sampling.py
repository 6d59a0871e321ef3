"""How one sequence chooses its next token from the logits. Imported in the child process only.

The greedy choice without anything that moves logits is an argmax; all else is a chain of llama.cpp's samplers. A
grammar is asked about the token that was chosen without it, and only where it refuses about all of them: that costs
microseconds where asking about a vocabulary costs milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import math
from typing import Any, Final

import llama_cpp as ll
import numpy as np

from agent.engine.protocol import Submit
from agent.errors import BadRequestError, EngineError

#: Tokens that the penalties look back on.
_LAST: Final = 64
#: No token that is refused or biased away comes back from here.
_NEVER: Final = -math.inf

_CANDIDATE: Final = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class Candidates:
    """The vocabulary as llama.cpp's samplers take it; one serves all sequences, one after another."""

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._data = np.zeros(vocab_size, dtype=_CANDIDATE)
        self._array = ll.llama_token_data_array()
        self._one = np.zeros(1, dtype=_CANDIDATE)

    def all(self, logits: np.ndarray) -> Any:
        """All tokens with these logits."""
        self._data["id"] = self._ids
        self._data["logit"] = logits
        return self._wrap(self._data)

    def one(self, token: int) -> Any:
        """A single token."""
        self._one["id"], self._one["logit"] = token, 1.0
        return self._wrap(self._one)

    def _wrap(self, data: np.ndarray) -> Any:
        self._array.data = ctypes.cast(data.ctypes.data, ctypes.POINTER(ll.llama_token_data))
        self._array.size, self._array.selected, self._array.sorted = len(data), -1, False
        return ctypes.byref(self._array)

    @property
    def refused(self) -> bool:
        """Whether the single token of `one` was refused."""
        return bool(self._one["logit"][0] == _NEVER)

    @property
    def exhausted(self) -> bool:
        """Whether no token of `all` is left."""
        return not bool(np.isfinite(self._data["logit"]).any())

    @property
    def chosen(self) -> int:
        """What a chain chose."""
        if not 0 <= self._array.selected < self._array.size:
            raise EngineError("no token could be chosen")
        return int(self._array.data[self._array.selected].id)


class Sampler:
    """Chooses the tokens of one sequence. `close` frees it."""

    def __init__(self, vocab: Any, candidates: Candidates, job: Submit, *, seed: int, grammar: str) -> None:
        """Raises BadRequestError for a grammar that llama.cpp refuses."""
        self._candidates = candidates
        self._grammar: Any = None
        self._logprobs = job.logprobs
        biased = {token: bias for token, bias in job.logit_bias if 0 <= token < ll.llama_vocab_n_tokens(vocab)}
        self._plain = job.temperature <= 0 and not (biased or grammar or _penalised(job))
        self._chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        if grammar:
            self._grammar = ll.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:
                self.close()
                raise BadRequestError("llama.cpp cannot use this grammar", details={"param": "grammar"})
        for part in _parts(vocab, job, biased, seed):
            ll.llama_sampler_chain_add(self._chain, part)

    def sample(self, logits: np.ndarray) -> int:
        """The next token. Raises EngineError where the grammar leaves none."""
        if self._plain:
            return int(logits.argmax())
        candidates = self._candidates
        ll.llama_sampler_apply(self._chain, candidates.all(logits))
        token = candidates.chosen
        if self._grammar is not None:
            ll.llama_sampler_apply(self._grammar, candidates.one(token))
            if candidates.refused:
                every = candidates.all(logits)
                ll.llama_sampler_apply(self._grammar, every)
                if candidates.exhausted:
                    raise EngineError("the grammar leaves the model nothing to say here")
                ll.llama_sampler_apply(self._chain, every)
                token = candidates.chosen
            ll.llama_sampler_accept(self._grammar, token)
        ll.llama_sampler_accept(self._chain, token)
        return token

    def logprobs(self, logits: np.ndarray, token: int, text_of: Any) -> str:
        """The entry of OpenAI's `logprobs.content` for a token, as JSON; empty where nobody asked.

        Of the model's own distribution, before temperature, penalties and grammar.
        """
        if self._logprobs < 0:
            return ""
        shifted = logits.astype(np.float64) - float(logits.max())
        log_all = shifted - math.log(float(np.exp(shifted).sum()))
        top = np.argpartition(log_all, -self._logprobs)[-self._logprobs :] if self._logprobs else np.empty(0, int)
        best = sorted(map(int, top), key=lambda one: -log_all[one])
        entry = _entry(token, log_all, text_of)
        return json.dumps([{**entry, "top_logprobs": [_entry(one, log_all, text_of) for one in best]}])

    def close(self) -> None:
        """Free it."""
        if self._chain:
            ll.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            ll.llama_sampler_free(self._grammar)
            self._grammar = None


def _entry(token: int, log_all: np.ndarray, text_of: Any) -> dict[str, object]:
    piece: bytes = text_of(token)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": round(max(float(log_all[token]), -9999.0), 6),
        "bytes": list(piece),
    }


def _penalised(job: Submit) -> bool:
    return bool(job.repeat_penalty != 1.0 or job.presence_penalty or job.frequency_penalty)


def _parts(vocab: Any, job: Submit, biased: dict[int, float], seed: int) -> list[Any]:
    parts: list[Any] = []
    if biased:
        entries = (ll.llama_logit_bias * len(biased))(
            *(ll.llama_logit_bias(token, _NEVER if bias <= -100 else bias) for token, bias in biased.items())
        )
        parts.append(ll.llama_sampler_init_logit_bias(ll.llama_vocab_n_tokens(vocab), len(biased), entries))
    if _penalised(job):
        parts.append(
            ll.llama_sampler_init_penalties(
                ll.llama_vocab_n_tokens(vocab), _LAST, job.repeat_penalty, job.frequency_penalty, job.presence_penalty
            )
        )
    if job.temperature <= 0:
        return [*parts, ll.llama_sampler_init_greedy()]
    if job.top_k > 0:
        parts.append(ll.llama_sampler_init_top_k(job.top_k))
    return [
        *parts,
        ll.llama_sampler_init_top_p(job.top_p, 1),
        ll.llama_sampler_init_min_p(job.min_p, 1),
        ll.llama_sampler_init_temp(job.temperature),
        ll.llama_sampler_init_dist(seed),
    ]
