"""From the messages of a chat to the text of a prompt: the model's own template, and no control token from a user.

A template comes with the model file and is not trusted: it is rendered in jinja2's sandbox, in the child process,
with a bounded output. What users write is not trusted either. A control token's text inside a message ("<|im_end|>")
would end the user's turn and start one of the system's; such texts are exchanged for random marks before rendering
and come out as `Span`s that are tokenised as plain text. All else is rendered and tokenised in one piece, so a prompt
without such texts gives exactly the tokens that it gives elsewhere.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.engine.structure.tools import CallForm
from agent.errors import BadRequestError

MAX_RENDERED: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Span:
    """A piece of a prompt; `plain` says that control tokens in it are only text."""

    text: str
    plain: bool = False


class Shield:
    """Keeps the control tokens of one vocabulary out of what users write. One instance serves one prompt."""

    def __init__(self, control: re.Pattern[str] | None) -> None:
        self._control = control
        self._texts: list[str] = []
        self._mark = f"x{secrets.token_hex(12)}x"

    def cover(self, text: str) -> str:
        """`text` with every control token exchanged for a mark."""
        return self._control.sub(self._cover, text) if self._control else text

    def cover_all(self, value: Any) -> Any:
        """A JSON value with every text in it covered, names of fields too."""
        if isinstance(value, str):
            return self.cover(value)
        if isinstance(value, dict):
            return {self.cover(key): self.cover_all(inner) for key, inner in value.items()}
        return [self.cover_all(inner) for inner in value] if isinstance(value, list) else value

    def _cover(self, found: re.Match[str]) -> str:
        self._texts.append(found[0])
        return f"{self._mark}{len(self._texts) - 1}z"

    def spans(self, rendered: str) -> list[Span]:
        """The rendered prompt with every mark exchanged back, apart from the rest."""
        spans: list[Span] = []
        end = 0
        for found in re.finditer(f"{self._mark}([0-9]+)z", rendered) if self._texts else ():
            spans += [Span(rendered[end : found.start()]), Span(self._texts[int(found[1])], plain=True)]
            end = found.end()
        spans.append(Span(rendered[end:]))
        return [span for span in spans if span.text]


def control_pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the texts of a vocabulary's control tokens; the longest of several is found."""
    ordered = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


class ChatTemplate:
    """A model's chat template, compiled once.

    `native` renders (template, messages) by llama.cpp's own list of known templates, or returns None; it is used
    where jinja2 cannot compile the template.
    """

    def __init__(
        self, source: str | None, *, bos: str, eos: str, native: Callable[[str, Sequence[tuple[str, str]]], str | None]
    ) -> None:
        self._source = source
        self._native = native
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._compiled: Any = None
        variables: frozenset[str] = frozenset()
        if source:
            self._compiled, variables = _compile(source)
        #: Whether the template tells the model of functions, and how the model then writes a call.
        self.knows_tools = "tools" in variables
        self.call_form: CallForm = call_form_of(source or "") if self.knows_tools else "generic"

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt for (role, content) messages; see `prompt`."""
        return self.prompt([{"role": role, "content": content} for role, content in messages])

    def prompt(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt for messages with `role`, `content` and what else a template may know, up to where the assistant
        speaks. `tools` are functions as OpenAI declares them; only a template that knows tools is given any.

        Raises BadRequestError where the model has no template or its template refuses the messages.
        """
        if self._source is None:
            raise BadRequestError(
                "the model has no chat template, so it cannot chat; send its text to /v1/completions instead"
            )
        if "developer" not in self._source:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        if self._compiled is None:
            text = self._native(self._source, [(turn["role"], turn["content"]) for turn in turns])
            if text is None:
                raise BadRequestError(
                    "the model's chat template cannot be used; send its text to /v1/completions instead"
                )
            return text
        return self._render(self._compiled, turns, tools)

    def _render(self, compiled: Any, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        from jinja2 import TemplateError

        parts: list[str] = []
        size = 0
        # Templates ask `if tools` or `if tools is not none`: nothing is none, never an empty list.
        given = {**self._tokens, "tools": list(tools) or None}
        try:
            for part in compiled.generate(messages=list(turns), add_generation_prompt=True, **given):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED:
                    raise BadRequestError(f"the prompt is longer than {MAX_RENDERED} characters")
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
            MemoryError,
        ) as error:
            reason = str(error) or type(error).__name__
            raise BadRequestError(f"the model's chat template refuses these messages: {reason}") from None
        return "".join(parts)


def call_form_of(source: str) -> CallForm:
    """How a model writes calls, by what its template shows it of them."""
    if "<tool_call>" in source:
        return "hermes"
    if '"parameters"' in source or "python_tag" in source or "ipython" in source:
        return "llama"
    return "generic"


def _compile(source: str) -> tuple[Any, frozenset[str]]:
    """The template as the chat templates of model files expect it to be compiled, and the variables it asks for.

    The template is None where it does not compile.
    """
    import jinja2
    from jinja2 import meta
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().astimezone().strftime(form)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes HTML

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    environment.filters["tojson"] = tojson
    try:
        return environment.from_string(source), frozenset(meta.find_undeclared_variables(environment.parse(source)))
    except (jinja2.TemplateSyntaxError, RecursionError):
        return None, frozenset()
