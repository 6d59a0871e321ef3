"""Requests for vectors as OpenAI's API has them, with `pooling` beside, and their translation into jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from agent.errors import BadRequestError
from agent.http import openai_fields
from agent.http.openai_body import (
    StrictModel,
    json_object,
    policy_of,
    prompt_too_long,
    substitution_of,
    traceparent_of,
    urgency_of,
    validated,
)
from agent.http.openai_fields import supported_only
from agent.jobs.job import Job
from fleet.net.messages import MAX_DIMENSIONS, MAX_MODEL_NAME, MAX_PROMPT_BYTES, MAX_TEXTS, InferRequest

Encoding = Literal["float", "base64"]


@dataclass(frozen=True)
class AskedVectors:
    """A request that has been understood. `dimensions` is what the vectors must have; None takes them as they are."""

    job: Job
    encoding: Encoding
    dimensions: int | None


class EmbeddingRequest(StrictModel):
    """The body of POST /v1/embeddings."""

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    input: list[str]
    encoding_format: Encoding = "float"
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    pooling: Literal["", "mean", "cls", "last"] = ""

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            raise PydanticCustomError("input", "must be a string or a list of strings")
        if not value:
            raise PydanticCustomError("input", "is empty; send a text, or a list of them")
        if len(value) > MAX_TEXTS:
            raise PydanticCustomError(
                "input",
                "has {count} texts, and one request takes at most {most}; send several",
                {"count": len(value), "most": MAX_TEXTS},
            )
        if any(isinstance(item, int | list) for item in value):
            raise PydanticCustomError(
                "input", "has numbers of tokens, which differ from model to model; send the text itself"
            )
        return value


def parse_embedding(body: bytes, header: Callable[[str], str | None], job_id: str) -> AskedVectors:
    """Understand a request for vectors; raises BadRequestError that names the field."""
    fields = supported_only(json_object(body), EmbeddingRequest.model_fields, openai_fields.EMBEDDING)
    request = validated(EmbeddingRequest, fields)
    for index, text in enumerate(request.input):
        if not text:
            where = f"input.{index}" if len(request.input) > 1 else "input"
            raise BadRequestError(f"{where} is empty; there is nothing to make a vector of", details={"param": where})
    if sum(len(text.encode()) for text in request.input) > MAX_PROMPT_BYTES:
        raise prompt_too_long("input")
    infer = InferRequest(
        v=2,
        job=job_id,
        kind="embedding",
        model=request.model,
        texts=tuple(request.input),
        pooling=request.pooling,
        traceparent=traceparent_of(header("traceparent")),
        **urgency_of(header),
    )
    job = Job(infer, policy_of(header), substitution=substitution_of(header))
    return AskedVectors(job, request.encoding_format, request.dimensions)
