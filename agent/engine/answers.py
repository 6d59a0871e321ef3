"""What the child says of a request that cannot be run, and of a model that runs no sequences."""

from __future__ import annotations

from dataclasses import fields

from agent.engine.protocol import Failed, Statistics
from agent.errors import AgentError


def nothing_runs(id: int) -> Statistics:
    """The statistics of a model that runs no sequences."""
    return Statistics(id, *[0] * (len(fields(Statistics)) - 1))


def failed(id: int, error: AgentError) -> Failed:
    """An error as the agent is told it."""
    code = error.code if error.code in ("bad_request", "context_length_exceeded", "model_load") else "engine"
    details = {key: value for key, value in error.details.items() if isinstance(value, int)}
    return Failed(id, code, error.message, details)  # type: ignore[arg-type]  # narrowed by the line above
