"""The functions a model may call: as they are sent, as a model is told of them, and as a grammar of the call.

A call is one JSON object. How it is written depends on what the model has learnt, which its chat template shows:

| form    | a call                                                         |
|---------|----------------------------------------------------------------|
| hermes  | `<tool_call>` {"name": ..., "arguments": {...}} `</tool_call>` |
| llama   | {"name": ..., "parameters": {...}}                             |
| generic | {"name": ..., "arguments": {...}}                              |

The last is for models whose template knows no functions: `instructions` tells them, in words any chat model can follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent.engine.structure.json_schema import rule_of
from agent.engine.structure.notation import Grammar, literal
from agent.errors import BadRequestError

CallForm = Literal["hermes", "llama", "generic"]

#: Bytes of all functions as JSON, how many there may be, and how deep their JSON may be nested.
MAX_TOOLS_TEXT: Final = 128 * 1024
MAX_TOOLS: Final = 128
_MAX_NESTING: Final = 64
FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_ARGUMENTS: Final[Mapping[CallForm, str]] = {"hermes": "arguments", "llama": "parameters", "generic": "arguments"}


@dataclass(frozen=True)
class Function:
    """One function. `parameters` is the JSON Schema of its arguments, None where any object will do."""

    name: str
    description: str
    parameters: Mapping[str, Any] | None

    def declared(self) -> dict[str, Any]:
        """As chat templates expect it."""
        parameters = self.parameters if self.parameters is not None else {"type": "object", "properties": {}}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }


def read_tools(text: str) -> tuple[Function, ...]:
    """The functions in a JSON array of OpenAI's form; none for an empty text. Raises BadRequestError with the place."""
    if not text:
        return ()
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TOOLS_TEXT:
        raise _problem("tools", f"the functions are larger than {MAX_TOOLS_TEXT} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _problem("tools", "this is no JSON") from None
    return tools_of(value)


def tools_of(value: object) -> tuple[Function, ...]:
    """The functions in a decoded array. Raises BadRequestError with the place."""
    if not isinstance(value, list):
        raise _problem("tools", "must be an array")
    if len(value) > MAX_TOOLS:
        raise _problem("tools", f"there are more than {MAX_TOOLS} functions")
    if _too_deep(value):
        raise _problem("tools", f"the functions are nested more than {_MAX_NESTING} deep")
    functions = [_function(one, f"tools.{index}") for index, one in enumerate(value)]
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise _problem(f"tools.{index}.function.name", f"there is a function {function.name!r} already")
        seen.add(function.name)
    return tuple(functions)


def tools_text(functions: Sequence[Function]) -> str:
    """The functions as `read_tools` reads them."""
    return json.dumps([one.declared() for one in functions], ensure_ascii=False, separators=(",", ":"))


def _function(value: object, where: str) -> Function:
    if not isinstance(value, dict) or not isinstance(value.get("function"), dict):
        raise _problem(where, 'must be {"type": "function", "function": {...}}')
    if value.get("type") != "function":
        raise _problem(f"{where}.type", "only functions can be called")
    _known(value, ("type", "function"), where)
    inner = value["function"]
    _known(inner, ("name", "description", "parameters", "strict"), f"{where}.function")
    name, description, parameters = inner.get("name"), inner.get("description"), inner.get("parameters")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _problem(f"{where}.function.name", "1 to 64 letters, digits, underscores and hyphens")
    if description is not None and not isinstance(description, str):
        raise _problem(f"{where}.function.description", "must be a string")
    if inner.get("strict") not in (None, True, False):
        raise _problem(f"{where}.function.strict", "must be true or false")
    if parameters is not None and not isinstance(parameters, dict):
        raise _problem(f"{where}.function.parameters", "must be a JSON Schema, which is an object")
    return Function(name, description or "", parameters)


def _known(value: Mapping[str, object], names: Sequence[str], where: str) -> None:
    for name in value:
        if name not in names:
            raise _problem(f"{where}.{name}"[:80], f"unknown field; there are {', '.join(names)}")


def _too_deep(value: object) -> bool:
    pending = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        if depth > _MAX_NESTING:
            return True
        if isinstance(one, dict):
            pending += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            pending += [(inner, depth + 1) for inner in one]
    return False


def _problem(param: str, message: str) -> BadRequestError:
    return BadRequestError(f"{param}: {message}", details={"param": param})


def call_rule(functions: Sequence[Function], form: CallForm, grammar: Grammar) -> str:
    """A rule for a call of one of these functions. Raises SchemaError for parameters that cannot be kept to."""
    key = literal(f'"{_ARGUMENTS[form]}":')
    comma = grammar.rule(f'"," " "? {key} " "?')
    options = []
    for function in functions:
        arguments = grammar.any_object
        if function.parameters is not None:
            schema = {"type": "object", **function.parameters}
            arguments = rule_of(schema, grammar, f"tools: parameters of {function.name}")
        end_of_name = literal(function.name + '"')
        options.append(f"{end_of_name} {comma} {arguments}")
    name = literal('"name":')
    call = f'"{{" " "? {name} " "? "\\"" {grammar.rule(" | ".join(options))} " "? "}}"'
    if form == "hermes":
        call = f'"<tool_call>" "\\n"? {call} "\\n"? "</tool_call>"'
    return grammar.rule(call)


def call_text(name: str, arguments: str, form: CallForm = "generic") -> str:
    """A call as the model would have written it; `arguments` is JSON text."""
    text = f'{{"name": {json.dumps(name)}, "{_ARGUMENTS[form]}": {arguments or "{}"}}}'
    return f"<tool_call>\n{text}\n</tool_call>" if form == "hermes" else text


def instructions(functions: Sequence[Function], choice: str) -> str:
    """What a model is told of functions that its own template cannot tell it of."""
    listed = "\n".join(json.dumps(one.declared()["function"], ensure_ascii=False) for one in functions)
    if choice == "required":
        when = "Answer with a call of one of them"
    elif choice == "auto":
        when = "If one of them helps, answer with a call and nothing else; otherwise answer in plain words. A call is"
    else:
        when = f"Answer with a call of {choice}"
    joint = "" if choice == "auto" else ", which is"
    return (
        f"You can call these functions, each given as JSON:\n{listed}\n\n{when}{joint} one JSON object:"
        ' {"name": FUNCTION, "arguments": {...}}'
    )
