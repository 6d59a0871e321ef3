"""How long a model takes for a prompt and for the tokens after it. Imported in the child process only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from agent.engine.chat import Span
from agent.engine.context import Context
from agent.engine.llama import Model
from agent.engine.schedule import Running, Slice

_WARM_PROMPT: Final = 32
_WARM_TOKENS: Final = 8
_WARM_LIMIT: Final = 0.5


def token_of(model: Model) -> int:
    """A token that any model has, to measure with."""
    return max(model.tokenize([Span("the")])[-1:], default=0)


def warm_up(model: Model, context: Context) -> tuple[float, float]:
    """Touch every weight once, then try: tokens per second of a short prefill and of a few decoding steps.

    For an empty context. Takes about half a second at most once the weights are in memory.
    """
    token = token_of(model)
    _timed(context, 0, [token], 1, lambda: False)
    began = time.perf_counter()
    prompt = max(1, min(_WARM_PROMPT, context.batch // 2))
    found = _timed(context, 0, [token] * prompt, _WARM_TOKENS, lambda: time.perf_counter() - began > _WARM_LIMIT)
    prompt_s, tokens, tokens_s = found
    return prompt / prompt_s, tokens / tokens_s


def probe_round(
    model: Model, context: Context, seq: int, prompt: int, tokens: int, stop: Callable[[], bool]
) -> tuple[float, float] | None:
    """Seconds for `prompt` tokens, at most a step of them, and for `tokens` after them, one by one.

    `seq` is the number of an empty sequence, which is empty again afterwards, with as many cells free. None where
    `stop` says between two steps that something else is to be done. Raises EngineError, NoRoomError and AbortedError as
    decoding does.
    """
    prompt_s, done, tokens_s = _timed(context, seq, [token_of(model)] * prompt, tokens, stop)
    return (prompt_s, tokens_s) if done == tokens else None


def _timed(
    context: Context, seq: int, prompt: list[int], tokens: int, stop: Callable[[], bool]
) -> tuple[float, int, float]:
    """Seconds for a prompt, how many tokens followed it until `stop`, at least one, and seconds for them."""
    sequence = Running(-1, "", prompt, len(prompt), 0, seq=seq)
    try:
        began = time.perf_counter()
        context.decode([Slice(sequence, 0, len(prompt))])
        read = time.perf_counter()
        done = 0
        while done < tokens and not (done and stop()):
            sequence.tokens.append(prompt[0])
            context.decode([Slice(sequence, len(sequence.tokens) - 1, 1)])
            done += 1
        return read - began, done, time.perf_counter() - read
    finally:
        context.forget(seq)
