"""Whose fault the end of a model's process was, and what comes next."""

from __future__ import annotations

import re

import pytest

from agent.engine.death import Death, Next, judge


@pytest.mark.parametrize(
    ("death", "next_", "crash", "reason"),
    [
        (
            Death("was ended by SIGKILL", loaded=True, killed=True, out_of_memory=True),
            "smaller",
            False,
            "want of",
        ),
        (Death("was ended by signal SIGKILL", killed=True, out_of_memory=True), "smaller", False, "want of memory"),
        (Death("was ended by signal SIGSEGV", loaded=True), "again", True, "runs m was ended by signal SIGSEGV"),
        (Death("was ended by signal SIGKILL", loaded=True, killed=True), "again", False, "SIGKILL"),
        (Death("did not answer", loaded=True, killed=True, ended_here=True), "again", True, "runs m did not answer"),
        (Death("hung", loaded=True, killed=True, ended_here=True, excused=True), "again", False, "runs m hung"),
        (Death("exited with code 1", refused="llama.cpp cannot"), "another file", False, "llama.cpp cannot"),
        (Death("did not answer", refused="too slow", killed=True, ended_here=True), "later", False, "too slow"),
        (Death("was ended by signal SIGKILL", "last", killed=True), "later", False, "loads it was ended .*: last"),
        (Death("was ended by signal SIGABRT", "GGML_ASSERT"), "again", True, "SIGABRT: GGML_ASSERT"),
    ],
)
def test_a_death_is_judged_by_how_and_when(death: Death, next_: Next, crash: bool, reason: str) -> None:
    judgement = judge("m", death)
    assert (judgement.next, judgement.crash) == (next_, crash)
    assert re.search(reason, judgement.reason)
