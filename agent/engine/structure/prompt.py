"""A job's prompt as tokens: its messages through the model's template, its functions, and what of it is left out.

Runs in the child process. A model whose template knows no functions is told of them in a system message, its own calls
are shown to it as the text they are asked for in, and their results as messages of the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.engine.chat import ChatTemplate, Shield, Span
from agent.engine.protocol import Submit
from agent.engine.structure.grammar import chosen
from agent.engine.structure.tools import Function, call_text, instructions, read_tools
from agent.engine.structure.truncate import left_out
from agent.errors import BadRequestError, ContextLengthError

Turn = dict[str, Any]
Tokenize = Callable[[Sequence[Span]], list[int]]

#: Times that more is left out because the template added more than the messages have.
_TRIES: Final = 6


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits, and how many tokens and messages were left out for that."""

    tokens: list[int]
    cut_tokens: int = 0
    cut_messages: int = 0


def build(
    job: Submit, template: ChatTemplate, new_shield: Callable[[], Shield], tokenize: Tokenize, room: int
) -> Prompt:
    """The prompt of a job for a context of `room` tokens.

    Raises ContextLengthError with both numbers where it leaves no room for an answer, BadRequestError for messages,
    functions or a template that cannot be used. Takes as long as tokenising the text twice, at the most.
    """
    if job.kind == "completion":
        shield = new_shield()
        # A completion's prompt is the whole prompt as its author wants it, control tokens included.
        return Prompt(_fitting(tokenize([Span(job.prompt), *shield.spans(shield.cover(job.prefix))]), room))
    turns = [_turn(*message) for message in job.messages]
    functions = chosen(read_tools(job.tools), job.tool_choice or "auto")

    def tokens_of(kept: Sequence[Turn]) -> list[int]:
        shield = new_shield()
        return tokenize(shield.spans(_render(template, shield, kept, functions, job) + shield.cover(job.prefix)))

    tokens = tokens_of(turns)
    # An answer is worth no more than a quarter of the context, whatever its max_tokens says.
    wanted = max(1, min(job.max_tokens or room, room // 4))
    if not job.truncate or len(tokens) <= room - wanted:
        return Prompt(_fitting(tokens, room))
    counts = [len(tokenize([Span(turn["content"] + str(turn.get("tool_calls", "")), plain=True)])) for turn in turns]
    # What the template adds is counted as if it added the same to every message.
    added = max(0, len(tokens) - sum(counts)) // len(turns)
    counts = [count + added for count in counts]
    roles = [str(turn["role"]) for turn in turns]
    excess = len(tokens) - (room - wanted)
    kept, out = tokens, frozenset[int]()
    for _ in range(_TRIES):
        more = left_out(roles, counts, excess, job.truncate)
        if more == out and out:
            break
        out = more
        kept = tokens_of([turn for at, turn in enumerate(turns) if at not in out])
        if len(kept) <= room - wanted:
            break
        excess += len(kept) - (room - wanted)
    return Prompt(_fitting(kept, room), len(tokens) - len(kept), len(out))


def _fitting(tokens: list[int], room: int) -> list[int]:
    if not tokens:
        raise BadRequestError("the prompt is empty", details={"param": "prompt"})
    if len(tokens) >= room:
        raise ContextLengthError(
            f"the prompt has {len(tokens)} tokens and the model's context {room}; shorten the prompt",
            details={"prompt_tokens": len(tokens), "context_tokens": room},
        )
    return tokens


def _turn(role: str, content: str, more: str) -> Turn:
    """A message as templates know it: arguments of calls are JSON values there, not text."""
    turn: Turn = {"role": role, "content": content}
    if not more:
        return turn
    try:
        turn |= {key: value for key, value in json.loads(more).items() if key not in turn}
    except (ValueError, AttributeError, RecursionError):
        raise BadRequestError(
            "messages: the fields of a message cannot be read", details={"param": "messages"}
        ) from None
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
            json.dumps(arguments, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            continue  # a model wrote it, half a character maybe; the template shows it as the text it is
        if isinstance(arguments, dict):
            function["arguments"] = arguments
    return turn


def _render(
    template: ChatTemplate, shield: Shield, turns: Sequence[Turn], functions: Sequence[Function], job: Submit
) -> str:
    used = functions or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns)
    if not used or template.knows_tools:
        covered = [{"role": turn["role"], **shield.cover_all(_without_role(_named(turn, turns)))} for turn in turns]
        return template.prompt(covered, shield.cover_all([one.declared() for one in functions]))
    told = instructions(functions, job.tool_choice or "auto") if functions else ""
    try:
        return template.prompt(_covered(shield, _in_words(turns, told)))
    except BadRequestError:
        if not told:
            raise
        # Some templates know no system message: the user says it then.
        return template.prompt(_covered(shield, _in_words([*turns], told, by_user=True)))


def _without_role(turn: Mapping[str, Any]) -> Turn:
    return {key: value for key, value in turn.items() if key != "role"}


def _covered(shield: Shield, turns: Sequence[Turn]) -> list[Turn]:
    return [{"role": turn["role"], "content": shield.cover(turn["content"])} for turn in turns]


def _named(turn: Turn, turns: Sequence[Turn]) -> Turn:
    """A result with the name of its function, which some templates ask for and few clients send."""
    if turn["role"] != "tool" or "name" in turn or "tool_call_id" not in turn:
        return turn
    for other in turns:
        for call in other.get("tool_calls", ()):
            if call["id"] == turn["tool_call_id"]:
                return {**turn, "name": call["function"]["name"]}
    return turn


def _in_words(turns: Sequence[Turn], told: str, *, by_user: bool = False) -> list[Turn]:
    """The chat as plain messages: calls and results as text, and what the model is told of its functions."""
    plain: list[Turn] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "tool":
            name = _named(turn, turns).get("name")
            role, content = "user", f"Result of {name}:\n{content}" if name else f"Result:\n{content}"
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            arguments = function["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            content = "\n".join(filter(None, (content, call_text(function["name"], text))))
        if plain and role == plain[-1]["role"] == "user":
            # Many templates refuse two messages of the user in a row.
            plain[-1] = {"role": "user", "content": f"{plain[-1]['content']}\n\n{content}"}
        else:
            plain.append({"role": role, "content": content})
    if not told:
        return plain
    if by_user:
        first = next((turn for turn in plain if turn["role"] == "user"), None)
        if first is not None:
            first["content"] = f"{told}\n\n{first['content']}"
            return plain
    if plain and plain[0]["role"] in ("system", "developer"):
        plain[0] = {"role": plain[0]["role"], "content": f"{plain[0]['content']}\n\n{told}"}
    else:
        plain.insert(0, {"role": "system", "content": told})
    return plain
