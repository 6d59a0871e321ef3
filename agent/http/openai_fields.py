"""The fields of the OpenAI API that are known here and not supported, and the values that ask for nothing.

A field that asks for something this box cannot do is refused by name, never ignored: an answer that silently lacks
the tools, the JSON or the penalties that were asked for is worse than none.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from agent.errors import BadRequestError

Neutral = Callable[[object], bool]


def _anything(_: object) -> bool:
    return True


def _one_of(*values: object) -> Neutral:
    return lambda value: any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values)


_EMPTY: Final = _one_of([], {}, "")

_BOTH: Final[Mapping[str, Neutral]] = {
    "n": _one_of(1),
    "user": _anything,
}

#: Fields of /v1/chat/completions. Labels and hints to a cache or a billing system change no answer.
CHAT: Final[Mapping[str, Neutral]] = {
    **_BOTH,
    "audio": _EMPTY,
    "function_call": _one_of("none", "auto"),
    "functions": _EMPTY,
    "metadata": _anything,
    "modalities": _one_of(["text"]),
    "moderation": _EMPTY,
    "prediction": _EMPTY,
    "prompt_cache_options": _anything,
    "prompt_cache_retention": _anything,
    "reasoning_effort": _one_of("none"),
    "safety_identifier": _anything,
    "service_tier": _one_of("auto", "default"),
    "store": _one_of(False),
    "verbosity": _one_of("medium"),
    "web_search_options": lambda _: False,
}

#: Fields of /v1/completions.
COMPLETION: Final[Mapping[str, Neutral]] = {
    **_BOTH,
    "best_of": _one_of(1),
    "echo": _one_of(False),
    "suffix": _EMPTY,
}

#: Fields of /v1/embeddings.
EMBEDDING: Final[Mapping[str, Neutral]] = {"user": _anything}

#: Fields of one chat message that clients send back from an earlier answer.
MESSAGE: Final[Mapping[str, Neutral]] = {
    "annotations": _EMPTY,
    "audio": _EMPTY,
    "function_call": _EMPTY,
    "reasoning_content": _EMPTY,
    "refusal": _EMPTY,
}


#: Fields of the other endpoint, by the field of this one that takes their place.
_ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    ("prompt", "messages"): "send messages, or the prompt to /v1/completions",
    ("prompt", "input"): "the texts are in input",
    ("messages", "input"): "the texts are in input",
    ("messages", "prompt"): "send a prompt, or the messages to /v1/chat/completions",
    ("max_completion_tokens", "prompt"): "it is max_tokens here",
}


def supported_only(
    fields: Mapping[str, object], supported: Iterable[str], unsupported: Mapping[str, Neutral], where: str = ""
) -> dict[str, object]:
    """The fields this API uses, without those that are null or ask for nothing.

    Raises BadRequestError for a field that asks for something unsupported, and for an unknown one, naming the
    nearest that is known. `where` is a prefix for names, such as `messages.0.`.
    """
    known = list(supported)
    kept: dict[str, object] = {}
    for name, value in fields.items():
        if name in known:
            if value is not None:
                kept[name] = value
        elif name in unsupported:
            if value is not None and not unsupported[name](value):
                raise BadRequestError(
                    f"{where}{name} is not supported with this value; leave it out", details={"param": where + name}
                )
        else:
            shown = f"{where}{name}"[:80]
            near = difflib.get_close_matches(name[:80], [*known, *unsupported], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            hint = next((f"; {_ELSEWHERE[name, own]}" for own in known if (name, own) in _ELSEWHERE), hint)
            raise BadRequestError(f"unknown field {shown!r}{hint}", details={"param": shown})
    return kept
