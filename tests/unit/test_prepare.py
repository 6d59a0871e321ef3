"""Requests as the child prepares them: what the model cannot do is refused before anything is decoded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.engine.batcher import failed
from agent.engine.prepare import Preparer
from agent.engine.protocol import Submit
from agent.errors import BadRequestError

MODEL = SimpleNamespace(
    vocab_size=10, longest_token=4, chat_template=None, native_template=None, bos_text="", eos_text="",
    control_texts=lambda: None, tokenize=lambda text, **_: list(range(len(text))),
)  # fmt: skip


def submit(*logit_bias: tuple[int, float]) -> Submit:
    return Submit(1, "completion", (), "hi", "", 8, 0.0, 1.0, 1, (), logit_bias=logit_bias)


@pytest.mark.parametrize("token", [10, -1, (1 << 53) - 1])
def test_a_bias_for_what_is_no_token_is_the_requests_fault(token: int) -> None:
    with pytest.raises(BadRequestError, match=rf"logit_bias: {token} is no token.* has 10, from 0 to 9") as caught:
        Preparer(cast(Any, MODEL), 64).prepare(submit((3, 1.0), (token, -100.0)))
    told = failed(1, caught.value)
    assert (told.code, told.details) == ("bad_request", {"token": token, "vocab_size": 10})


def test_a_bias_for_the_first_and_the_last_token_is_none() -> None:
    assert Preparer(cast(Any, MODEL), 64).prepare(submit((0, 1.0), (9, -100.0))).job.logit_bias
