"""What `logit_bias` does to the choice of a token, with the vocabulary of the real model and logits made by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from agent.engine.protocol import Submit
from agent.errors import BadRequestError
from tests.harness import model_path

ll = pytest.importorskip("llama_cpp")

from agent.engine.sampling import Candidates, Sampler  # noqa: E402 - where there is llama.cpp
from agent.engine.structure.enforce import Enforcer, Vocabulary  # noqa: E402

pytestmark = pytest.mark.model


class Words:
    """A vocabulary of the real size whose first tokens are these texts; the rest cannot be chosen by a grammar."""

    def __init__(self, vocab: Any) -> None:
        self.vocab = vocab
        self.size: int = ll.llama_vocab_n_tokens(vocab)
        self.candidates = Candidates(self.size)
        self.texts = [b"", b"yes", b"no", b"y", b"maybe"]
        self.listed = Vocabulary(self.size, lambda one: self.texts[one] if one < 5 else b"", lambda one: one == 0)

    def logits(self, some: Mapping[int, float]) -> np.ndarray:
        found = np.zeros(self.size, dtype=np.float32)
        for token, logit in some.items():
            found[token] = logit
        return found

    def sampler(self, *, grammar: str = "", **fields: Any) -> Sampler:
        values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, **fields}
        job = Submit(1, "completion", (), "", "", 8, seed=1, stop=(), **values)
        enforcer = Enforcer(grammar, self.listed) if grammar else None
        return Sampler(self.vocab, self.candidates, job, seed=1, enforcer=enforcer)


@pytest.fixture(scope="module")
def words() -> Iterator[Words]:
    params = ll.llama_model_default_params()
    params.vocab_only = True
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    model = ll.llama_model_load_from_file(str(model_path()).encode(), params)
    yield Words(ll.llama_model_get_vocab(model))
    ll.llama_model_free(model)
    ll.llama_log_set(ll.llama_log_callback(), ctypes.c_void_p(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("more", [{}, {"repeat_penalty": 1.3, "presence_penalty": -2.0}], ids=["plain", "penalties"])
def test_a_bias_of_minus_100_is_never(words: Words, temperature: float, more: Mapping[str, float]) -> None:
    # A lead that a mere 100 off would leave.
    logits = words.logits({7: 1000.0, 8: 850.0})
    free = words.sampler(temperature=temperature, **more)
    assert free.sample(logits) == 7
    banned = words.sampler(temperature=temperature, logit_bias=((7, -100.0),), **more)
    assert {banned.sample(logits) for _ in range(20)} == {8}
    almost = words.sampler(temperature=temperature, logit_bias=((7, -99.0),), **more)
    assert almost.sample(logits) == 7


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_does_not_bring_a_banned_token_back(words: Words, temperature: float) -> None:
    logits = words.logits({1: 50.0, 2: 10.0, 9: 90.0})
    grammar = 'root ::= "yes" | "no"'
    assert words.sampler(temperature=temperature, grammar=grammar).sample(logits) == 1
    banned = words.sampler(temperature=temperature, grammar=grammar, logit_bias=((1, -100.0), (3, -100.0)))
    assert banned.sample(logits) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_takes_only_what_is_banned_is_the_requests_fault(words: Words, temperature: float) -> None:
    bias = ((1, -100.0), (3, -100.0))
    sampler = words.sampler(temperature=temperature, grammar='root ::= "yes"', logit_bias=bias)
    with pytest.raises(BadRequestError, match="logit_bias bans every token") as caught:
        sampler.sample(words.logits({1: 50.0}))
    assert caught.value.details == {"param": "logit_bias"}


def test_a_bias_for_what_is_no_token_changes_nothing(words: Words) -> None:
    sampler = words.sampler(logit_bias=((words.size, -100.0), ((1 << 31) - 1, 100.0)))
    assert sampler.sample(words.logits({7: 5.0})) == 7
