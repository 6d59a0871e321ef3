"""A request in the engine, and the tokens that are chosen for it. Imported in the child process only."""

from __future__ import annotations

from typing import Literal

import numpy as np

from agent.engine.llama import Model
from agent.engine.prepare import Prepared
from agent.engine.sampling import Sampler
from agent.engine.schedule import Running
from agent.engine.text import TextAssembler

#: Why a request is over.
Reason = Literal["stop", "length", "cancelled"]
#: What a step gave to one request, as Step has it: id, text, tokens, logprobs.
Item = tuple[int, str, int, str]


class Live:
    """A request in the engine: its sequence, its sampler, and its text."""

    __slots__ = ("count", "decode_ms", "limit", "prefill_ms", "request", "sampler", "sequence", "text")

    def __init__(self, request: Prepared, sequence: Running, sampler: Sampler) -> None:
        self.request = request
        self.sequence = sequence
        self.sampler = sampler
        self.text = TextAssembler(request.job.stop)
        self.limit = request.limit
        self.count = 0
        self.prefill_ms = 0.0
        self.decode_ms = 0.0

    def choose(self, model: Model, logits: np.ndarray, items: list[Item]) -> Reason | None:
        """Choose the next token by `logits`, one a token of the vocabulary, and add what it gives to `items`.

        Returns why the request ends with it, or None. Raises AgentError where its grammar cannot be obeyed.
        """
        token = self.sampler.sample(logits)
        id = self.sequence.id
        reason: Reason | None = None
        if model.ends_text(token):
            reason = "stop"
        else:
            self.count += 1
            self.sequence.tokens.append(token)
            text = self.text.push(model.piece(token))
            logprobs = self.sampler.logprobs(logits, token, model.piece)
            items.append((id, text, 1, logprobs))
            if self.text.stopped:
                return "stop"
            if self.sampler.finished:
                reason = "stop"
            elif self.count >= self.limit:
                reason = "length"
        if reason is not None and (rest := self.text.finish()):
            items.append((id, rest, 0, ""))
            if self.text.stopped:
                return "stop"
        return reason
