"""The header Idempotency-Key."""

from __future__ import annotations

import pytest

from agent.errors import BadRequestError
from agent.http.idempotency import keyed
from agent.jobs.job import Job
from fleet.net.messages import InferRequest


def job(number: int = 1, prompt: str = "hi", **more: str) -> Job:
    return Job(InferRequest(job=f"job-{number}", kind="completion", model="smol", prompt=prompt), **more)  # type: ignore[arg-type]


def with_key(of: Job, key: str | None, authorization: str | None = None) -> Job:
    return keyed(of, {"idempotency-key": key, "authorization": authorization}.get)


def test_without_the_header_nothing_changes() -> None:
    assert with_key(job(), None) == job()


def test_the_same_request_has_the_same_fingerprint_whatever_its_id() -> None:
    first, again = with_key(job(1), "k"), with_key(job(2), "k")
    assert (first.once, first.fingerprint) == (again.once, again.fingerprint)
    assert first.request.job == "job-1"


@pytest.mark.parametrize(
    "other", [job(prompt="ho"), job(policy="never"), job(on_interrupt="resume"), job(substitution="quant")]
)
def test_another_request_has_another_fingerprint(other: Job) -> None:
    assert with_key(other, "k").fingerprint != with_key(job(), "k").fingerprint
    assert with_key(other, "k").once == with_key(job(), "k").once


def test_b45_the_keys_of_clients_never_meet() -> None:
    keys = {
        with_key(job(), key, client).once
        for key, client in [("k", None), ("k", "Bearer a"), ("k", "Bearer b"), ("ak", "Bearer "), ("l", None)]
    }
    assert len(keys) == 5


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "schlüssel", "a\tb"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(BadRequestError, match="Idempotency-Key"):
        with_key(job(), key)
