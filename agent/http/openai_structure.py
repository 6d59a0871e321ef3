"""What a request says about the form of its answer, and messages with calls in them, as jobs carry them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent.engine.structure import grammar as structure
from agent.engine.structure.gbnf import MAX_GRAMMAR
from agent.engine.structure.json_schema import MAX_SCHEMA
from agent.engine.structure.tools import FUNCTION_NAME, tools_of, tools_text
from agent.errors import BadRequestError
from fleet.net.messages import MAX_BIASES, MAX_TOOL_CALLS, MAX_TOOLS_TEXT, ToolCall

Output = Literal["", "json", "schema", "grammar"]


@dataclass(frozen=True)
class Form:
    """The form of an answer, as `InferRequest` has it; `names` are the functions that may be called."""

    output: Output = ""
    output_text: str = ""
    tools: str = ""
    tool_choice: str = ""
    names: tuple[str, ...] = ()


def form_of(
    response_format: Mapping[str, Any] | None,
    grammar: str | None,
    tools: Sequence[Any] = (),
    tool_choice: object = None,
    parallel: bool | None = None,
) -> Form:
    """Understand the form that is asked for; raises BadRequestError that names the field, and the place in it."""
    output, text = _output(response_format, grammar)
    choice = _choice(tool_choice)
    if not tools:
        if choice not in ("", "none", "auto"):
            raise _problem("tool_choice", "asks for a call, and there are no tools")
        form = Form(output, text)
    else:
        if parallel:
            raise _problem("parallel_tool_calls", "an answer has one call; send false, or leave it out")
        functions = tools_of(list(tools))
        sent = tools_text(functions)
        if len(sent.encode("utf-8", "surrogatepass")) > MAX_TOOLS_TEXT:
            raise _problem("tools", f"the functions are larger than {MAX_TOOLS_TEXT} bytes")
        names = tuple(one.name for one in structure.chosen(functions, choice or "auto"))
        form = Form(output, text, sent, choice, names)
    structure.check(form)
    return form


_FORMAT_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("type",),
    "json_object": ("type", "schema"),
    "json_schema": ("type", "json_schema"),
}


def _output(response_format: Mapping[str, Any] | None, grammar: str | None) -> tuple[Output, str]:
    kind = response_format.get("type") if response_format is not None else "text"
    if not isinstance(kind, str) or kind not in _FORMAT_FIELDS:
        raise _problem("response_format.type", f"must be one of {', '.join(_FORMAT_FIELDS)}")
    if grammar is not None:
        if kind != "text":
            raise _problem("grammar", "cannot be combined with response_format")
        if len(grammar.encode()) > MAX_GRAMMAR:
            raise _problem("grammar", f"is larger than the limit of {MAX_GRAMMAR} bytes (64 KiB)")
        return ("grammar", grammar) if grammar else ("", "")
    if response_format is None or kind == "text":
        _only(response_format or {}, _FORMAT_FIELDS["text"], "response_format")
        return "", ""
    _only(response_format, _FORMAT_FIELDS[kind], "response_format")
    where, found = "response_format.schema", response_format.get("schema")
    if kind == "json_schema":
        inner = response_format.get("json_schema")
        if not isinstance(inner, dict):
            raise _problem("response_format.json_schema", "must be an object")
        _only(inner, ("name", "description", "schema", "strict"), "response_format.json_schema")
        if inner.get("strict") not in (None, True, False):
            raise _problem("response_format.json_schema.strict", "must be true or false")
        if not isinstance(inner.get("name"), str):
            raise _problem("response_format.json_schema.name", "must be a string")
        where, found = "response_format.json_schema.schema", inner.get("schema")
        if found is None:
            raise _problem(where, "is required")
    if found is None:
        return "json", ""
    if not isinstance(found, dict | bool):
        raise _problem(where, "must be a JSON Schema: an object, true or false")
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SCHEMA:
        raise _problem(where, f"is larger than the limit of {MAX_SCHEMA} bytes (64 KiB)")
    return "schema", text


def _choice(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        if value not in structure.CHOICES:
            raise _problem(
                "tool_choice", f"must be one of {', '.join(structure.CHOICES)}, or an object that names a function"
            )
        return value
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise _problem("tool_choice", 'must look like {"type": "function", "function": {"name": NAME}}')
    _only(value, ("type", "function"), "tool_choice")
    _only(value["function"], ("name",), "tool_choice.function")
    name = value["function"].get("name")
    if not isinstance(name, str) or name in structure.CHOICES:
        raise _problem("tool_choice.function.name", "must be the name of a function")
    return name


def calls_of(value: Sequence[Any], where: str) -> tuple[ToolCall, ...]:
    """Calls of an earlier answer that is sent back; raises BadRequestError that names the field."""
    if len(value) > MAX_TOOL_CALLS:
        raise _problem(where, f"there are more than {MAX_TOOL_CALLS} calls")
    calls = []
    for index, call in enumerate(value):
        at = f"{where}.{index}"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or call.get("type", "function") != "function" or not isinstance(function, dict):
            raise _problem(at, 'must look like {"id": ID, "type": "function", "function": {...}}')
        _only(call, ("id", "type", "function", "index"), at)
        _only(function, ("name", "arguments"), f"{at}.function")
        id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
        if not isinstance(id, str) or len(id) > 128:
            raise _problem(f"{at}.id", "must be a string of at most 128 characters")
        if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
            raise _problem(f"{at}.function.name", "must be the name of a function")
        if not isinstance(arguments, str):
            raise _problem(f"{at}.function.arguments", "must be a string of JSON")
        calls.append(ToolCall(id=id, name=name, arguments=arguments))
    return tuple(calls)


def biases_of(value: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as pairs of token id and bias; raises BadRequestError that names the field."""
    if len(value) > MAX_BIASES:
        raise _problem("logit_bias", f"has more than {MAX_BIASES} entries")
    biases = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) < 1 << 31):
            raise _problem("logit_bias", f"{token[:40]!r} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise _problem("logit_bias", f"the bias of token {token} must be a number from -100 to 100")
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _only(value: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in value:
        if name not in names:
            raise _problem(f"{where}.{name}"[:80], f"unknown field; there are {', '.join(names)}")


def _problem(param: str, message: str) -> BadRequestError:
    return BadRequestError(f"{param}: {message}", details={"param": param})
