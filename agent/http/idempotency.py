"""The header Idempotency-Key: requests of one client that are the same job. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agent.errors import BadRequestError
from agent.jobs.job import Job

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def keyed(job: Job, header: Callable[[str], str | None]) -> Job:
    """The job with its key, where the client sent one; keys of clients with different API keys never meet.

    Raises BadRequestError for a key that is none.
    """
    key = header("idempotency-key")
    if key is None:
        return job
    if not _KEY.fullmatch(key):
        raise BadRequestError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters without spaces, such as a UUID",
            details={"param": "Idempotency-Key"},
        )
    client = header("authorization") or ""
    asked = job.request.model_copy(update={"job": "-", "traceparent": None}).model_dump_json()
    return replace(
        job,
        once=_digest(client, key),
        fingerprint=_digest(job.policy or "", job.on_interrupt, job.substitution or "", asked),
    )


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
