"""What every OpenAI endpoint does with a request's body and headers before it knows what is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from agent.errors import BadRequestError
from agent.http.exchange import text_of
from agent.jobs.job import POLICIES, PRIORITIES
from agent.routing.decide import Policy
from agent.trace import parse
from fleet.models.substitution import SUBSTITUTIONS, Substitution
from fleet.net.messages import MAX_PROMPT_BYTES

#: Seconds that a client may wait at most.
MAX_DEADLINE: Final = 86_400
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


class StrictModel(BaseModel):
    """A request, or a part of one."""

    # No silent conversions: "0.5" is not a number, true is not 1.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


def json_object(body: bytes) -> dict[str, object]:
    """The body as a JSON object; raises BadRequestError that says where it is none."""
    text = text_of(body)
    try:
        value: Any = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        # The parser's own message ends with line and column; it bounds nesting at 200 and digits at 4300.
        raise BadRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


#: What pydantic says in words of its own and of Python, in those of this API and JSON.
_IN_JSON: Final[Mapping[str, str]] = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "extra_forbidden": "there is no such field",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_parsing_size": "has too many digits",
    "int_type": "must be an integer",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be an array",
    "literal_error": "must be {expected}",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "string_unicode": "has half of a character",
    "too_long": "has more than {max_length} entries",
    "too_short": "must not be empty",
}

M = TypeVar("M", bound=BaseModel)


def validated(kind: type[M], fields: Mapping[str, object]) -> M:
    """The fields as `kind`; raises BadRequestError that names the first wrong one, in the words of JSON."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        hint = "; GET /v1/models lists what there is" if param == "model" else ""
        raise BadRequestError(f"{param} is required{hint}", details={"param": param})
    said = _IN_JSON.get(first["type"])
    # What a field of this project's own is when it is not sent is no value to send; Python's False is JSON's false.
    words = {
        key: str(value).replace("'', ", "").replace("False", "false") for key, value in first.get("ctx", {}).items()
    }
    raise BadRequestError(f"{param}: {said.format_map(words) if said else first['msg']}", details={"param": param})


C = TypeVar("C", bound=str)


def choice_of(header: Callable[[str], str | None], name: str, values: tuple[C, ...], default: C) -> C:
    """One of the values of a request header, in any case; raises BadRequestError that lists them."""
    given = header(name.lower())
    if given is None:
        return default
    for value in values:
        if given.strip().lower() == value:
            return value
    raise BadRequestError(
        f"{name} must be one of {', '.join(values)}; not {given[:40]!r}",
        details={"param": name, "allowed": list(values)},
    )


def policy_of(header: Callable[[str], str | None]) -> Policy | None:
    """Where the client lets its job run, None where it does not say; raises BadRequestError."""
    if header("x-shoal-offload") is None:
        return None
    return choice_of(header, "X-Shoal-Offload", POLICIES, "prefer")


def substitution_of(header: Callable[[str], str | None]) -> Substitution | None:
    """What the client lets stand in for its model, None where it does not say; raises BadRequestError."""
    if header("x-shoal-substitution") is None:
        return None
    return choice_of(header, "X-Shoal-Substitution", SUBSTITUTIONS, "none")


def urgency_of(header: Callable[[str], str | None]) -> dict[str, Any]:
    """How urgent a client's job is, as fields of InferRequest; raises BadRequestError."""
    fields: dict[str, Any] = {"priority": choice_of(header, "X-Shoal-Priority", PRIORITIES, "normal")}
    given = header("x-shoal-deadline")
    if given is not None:
        if not _SECONDS.fullmatch(given) or not 0 < float(given) <= MAX_DEADLINE:
            raise BadRequestError(
                f"X-Shoal-Deadline must be seconds, more than 0 and at most {MAX_DEADLINE}; not {given[:40]!r}",
                details={"param": "X-Shoal-Deadline"},
            )
        fields["deadline_ms"] = max(1, round(float(given) * 1000))
    return fields


def traceparent_of(header: str | None) -> str | None:
    """A W3C traceparent; None where there is none or it is malformed, which the standard says to ignore."""
    span = parse(header)
    return None if span is None else str(span)


def prompt_too_long(param: str) -> BadRequestError:
    """The refusal of more text than a job may have."""
    return BadRequestError(
        f"the prompt is larger than the limit of {MAX_PROMPT_BYTES} bytes (1 MiB)",
        details={"param": param, "limit_bytes": MAX_PROMPT_BYTES},
    )
