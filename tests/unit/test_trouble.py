"""What those are told who ask for a model that cannot be loaded."""

from __future__ import annotations

import math

import pytest

from agent.engine.trouble import Trouble


@pytest.mark.parametrize(("retry_at", "after"), [(math.inf, None), (130.0, 30), (100.2, 1), (100.0, 1), (5.0, 1)])
def test_a_problem_says_what_to_do_and_when_to_ask_again(retry_at: float, after: int | None) -> None:
    problem = Trouble("it is broken", "replace m.gguf", retry_at).problem("m", 100.0)
    assert problem.message == "m cannot be loaded: it is broken; replace m.gguf"
    assert problem.retry_after == after


@pytest.mark.parametrize(
    ("reason", "folder", "told"),
    [
        ("cannot open /srv/my models/m.gguf", "/srv/my models", "cannot open m.gguf"),
        ("the file cannot be read: [Errno 5] '/mnt/x/m.gguf'", "/srv", "the file cannot be read: [Errno 5] 'm.gguf'"),
        ("SIGABRT: /build/ggml/src/g.c:17: ASSERT(a / b) failed", "/", "SIGABRT: g.c:17: ASSERT(a / b) failed"),
        ("3 tok/s, see https://a.example/b/c", "", "3 tok/s, see https://a.example/b/c"),
    ],
)  # fmt: skip
def test_nobody_who_asks_is_told_where_the_files_are(reason: str, folder: str, told: str) -> None:
    problem = Trouble(reason, "replace m.gguf", folder=folder).problem("m", 0.0)
    assert problem.message == f"m cannot be loaded: {told}; replace m.gguf"
