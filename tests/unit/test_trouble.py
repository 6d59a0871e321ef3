"""What those are told who ask for a model that cannot be loaded."""

from __future__ import annotations

import math

import pytest

from agent.engine.trouble import Trouble


@pytest.mark.parametrize(("retry_at", "after"), [(math.inf, None), (130.0, 30), (100.2, 1), (100.0, 1), (5.0, 1)])
def test_a_problem_says_what_to_do_and_when_to_ask_again(retry_at: float, after: int | None) -> None:
    problem = Trouble("it is broken", "replace /m.gguf", retry_at).problem("m", 100.0)
    assert problem.message == "m cannot be loaded: it is broken; replace /m.gguf"
    assert problem.retry_after == after
