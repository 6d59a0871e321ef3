"""Finding out what a server is and which models it has, by asking it as little as possible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import trio

from agent.config import EngineKind
from agent.engine.external import listing
from agent.engine.external.listing import Listed
from agent.engine.external.trouble import ConnectTroubleError, ServerTroubleError, StatusTroubleError

Kind = Literal["ollama", "lmstudio", "llama-server", "vllm", "openai"]

#: Seconds that Ollama has to describe one model, and all that are new.
_SHOW_LIMIT: Final = 1.5
_SHOWS_LIMIT: Final = 10.0

#: Jobs that a server of a kind is given at a time where neither it nor the configuration says.
_SLOTS: Final[Mapping[Kind, int]] = {"ollama": 1, "lmstudio": 4, "llama-server": 1, "vllm": 16, "openai": 4}


class Fetch(Protocol):
    """Asks the server for the JSON at a path; raises ServerTroubleError and its kin."""

    def __call__(self, path: str, post: object = None) -> Awaitable[object]:
        """With `post` the request is a POST of it."""


@dataclass(frozen=True)
class Survey:
    """A server as it was found. `slots` is how many jobs at a time suit it."""

    kind: Kind
    models: tuple[Listed, ...]
    slots: int


async def survey(kind: EngineKind, fetch: Fetch, wanted: Callable[[Listed], bool] = lambda model: True) -> Survey:
    """Ask a server what it has, and with `auto` what it is; only models that are `wanted` are looked at closer.

    Raises ServerTroubleError where it cannot be used. Without a time limit of its own.
    """
    found: Kind = await _kind(fetch) if kind == "auto" else kind
    slots = _SLOTS[found]
    match found:
        case "ollama":
            models = listing.from_ollama(await fetch("/api/tags"))
        case "lmstudio":
            models = listing.from_lmstudio(await fetch("/api/v0/models"))
        case _:
            answer = await fetch("/v1/models")
            _refuse_shoal(answer)
            models = listing.from_openai(answer)
    listed = listing.bounded(model for model in models if wanted(model))
    if found == "ollama":
        listed = listing.with_running(listed, await fetch("/api/ps"))
    elif found == "llama-server":
        described = await _or_nothing(fetch, "/props")
        if described is not None:
            props = listing.props(described)
            slots = props.slots or slots
            listed = tuple(replace(model, context_tokens=props.context_tokens) for model in listed)
    return Survey(found, listed, slots)


async def look_closer(found: Survey, fetch: Fetch, known: dict[str, listing.Shown]) -> Survey:
    """With Ollama, ask about each model that is not `known` by its digest, and leave out those that write no text.

    What is not answered in time is taken as usual, and asked again at the next survey.
    """
    if found.kind != "ollama":
        return found
    kept = []
    digests = {model.digest for model in found.models}
    for gone in [digest for digest in known if digest not in digests]:
        del known[gone]
    with trio.move_on_after(_SHOWS_LIMIT):
        for model in found.models:
            if model.digest not in known:
                with trio.move_on_after(_SHOW_LIMIT):
                    try:
                        known[model.digest] = listing.shown(await fetch("/api/show", {"model": model.id}))
                    except ConnectTroubleError:
                        raise
                    except ServerTroubleError:
                        continue  # this one model cannot be shown, so it could not be run either
    for model in found.models:
        shown = known.get(model.digest)
        if shown is None:
            kept.append(model if model.context_tokens else replace(model, context_tokens=listing.USUAL_CONTEXT))
        elif shown.generates:
            kept.append(model if model.context_tokens else replace(model, context_tokens=shown.context_tokens))
    return replace(found, models=tuple(kept))


async def _kind(fetch: Fetch) -> Kind:
    try:
        listed = await fetch("/v1/models")
        owned_by = listing.owners(listed)
    except ConnectTroubleError:
        raise
    except StatusTroubleError as error:
        if error.status != 404:
            raise
        owned_by = None  # an Ollama of before its OpenAI API would be seen below, but could not serve
    _refuse_owner(owned_by or set())
    if owned_by is not None:
        if "llamacpp" in owned_by:
            return "llama-server"
        if "vllm" in owned_by:
            return "vllm"
    if listing.is_ollama(await _or_nothing(fetch, "/api/tags")):
        return "ollama"
    if listing.is_lmstudio(await _or_nothing(fetch, "/api/v0/models")):
        return "lmstudio"
    if owned_by is None:
        raise ServerTroubleError("does not list models; is it an inference server?")
    return "openai"


async def _or_nothing(fetch: Fetch, path: str) -> object:
    try:
        return await fetch(path)
    except ConnectTroubleError:
        raise
    except ServerTroubleError:
        return None


def _refuse_shoal(found: object) -> None:
    _refuse_owner(listing.owners(found))


def _refuse_owner(owned_by: set[str]) -> None:
    """A job that a box hands to another's API comes to that box as its own, and may come back without end."""
    if "shoal" in owned_by:
        raise ServerTroubleError("is a Shoal agent; boxes of a fleet use one another without being configured")
