"""How one sequence chooses its next token from the logits. Imported in the child process only.

The greedy choice without anything that moves logits is an argmax; all else is a chain of llama.cpp's samplers. A
grammar is asked about the token that was chosen without it, and only where it refuses about others: that costs
microseconds where asking about a vocabulary costs milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import llama_cpp as ll
import numpy as np

from agent.engine.protocol import Submit
from agent.engine.structure.enforce import Enforcer
from agent.errors import BadRequestError, EngineError

#: Tokens that the penalties look back on.
_LAST: Final = 64
#: A token with this bias or less never comes, whatever else is wanted.
_BAN: Final = -100.0
#: A token that is biased away does not come back from here.
_NEVER: Final = -math.inf

_CANDIDATE: Final = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class Candidates:
    """Tokens and their logits as llama.cpp's samplers take them; one serves all sequences, one after another."""

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._data = np.zeros(vocab_size, dtype=_CANDIDATE)
        self._array = ll.llama_token_data_array()

    def all(self, logits: np.ndarray) -> Any:
        """All tokens with these logits."""
        self._data["id"] = self._ids
        self._data["logit"] = logits
        return self._wrap(self._data)

    def some(self, tokens: Sequence[int], logits: np.ndarray) -> Any:
        """Only these tokens."""
        few = self._data[: len(tokens)]
        few["id"] = tokens
        few["logit"] = logits[few["id"]]
        return self._wrap(few)

    def _wrap(self, data: np.ndarray) -> Any:
        self._array.data = ctypes.cast(data.ctypes.data, ctypes.POINTER(ll.llama_token_data))
        self._array.size, self._array.selected, self._array.sorted = len(data), -1, False
        return ctypes.byref(self._array)

    @property
    def chosen(self) -> int:
        """What a chain chose. Raises EngineError where it chose none."""
        if not 0 <= self._array.selected < self._array.size:
            raise EngineError("no token could be chosen")
        return int(self._array.data[self._array.selected].id)


class Sampler:
    """Chooses the tokens of one sequence. `close` frees it."""

    def __init__(
        self, vocab: Any, candidates: Candidates, job: Submit, *, seed: int, enforcer: Enforcer | None
    ) -> None:
        self._candidates = candidates
        self._enforcer = enforcer
        self._logprobs = job.logprobs
        biased = {token: bias for token, bias in job.logit_bias if 0 <= token < ll.llama_vocab_n_tokens(vocab)}
        self._banned = [token for token, bias in biased.items() if bias <= _BAN]
        self._chain: Any = None
        if job.temperature > 0 or biased or _penalised(job):
            self._chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
            for part in _parts(vocab, job, biased, seed):
                ll.llama_sampler_chain_add(self._chain, part)

    @property
    def finished(self) -> bool:
        """Whether a grammar lets nothing follow."""
        return self._enforcer is not None and self._enforcer.finished

    def sample(self, logits: np.ndarray) -> int:
        """The next token. Raises BadRequestError where the grammar leaves none, leaves too many ways open, or leaves
        none but tokens that `logit_bias` bans."""
        token = self._choose(logits, None)
        if self._enforcer is not None:
            if not self._enforcer.takes(token):
                left = self._allowed(self._enforcer, logits)
                token = self._choose(logits, left)
            self._enforcer.accept(token)
        if self._chain is not None:
            ll.llama_sampler_accept(self._chain, token)
        return token

    def _allowed(self, enforcer: Enforcer, logits: np.ndarray) -> list[int]:
        """Tokens that the grammar takes and nobody has banned, the likeliest first."""
        if not self._banned:
            left = enforcer.allowed(logits)
        else:
            # Banned ones come last in the search, or it could end with nothing else. The chain would take one of them
            # where it is given no other.
            moved = logits.copy()
            moved[self._banned] = _NEVER
            left = [token for token in enforcer.allowed(moved) if moved[token] > _NEVER]
            if not left and enforcer.allowed(logits):
                message = "logit_bias bans every token that the grammar or schema allows here"
                raise BadRequestError(message, details={"param": "logit_bias"})
        return left

    def _choose(self, logits: np.ndarray, tokens: Sequence[int] | None) -> int:
        """By the chain, or the likeliest; of some tokens, the likeliest first, or of all."""
        if self._chain is None:
            return int(logits.argmax()) if tokens is None else tokens[0]
        candidates = self._candidates
        ll.llama_sampler_apply(
            self._chain, candidates.all(logits) if tokens is None else candidates.some(tokens, logits)
        )
        return candidates.chosen

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
        if self._chain is not None:
            ll.llama_sampler_free(self._chain)
            self._chain = None


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
            *(ll.llama_logit_bias(token, _NEVER if bias <= _BAN else bias) for token, bias in biased.items())
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
