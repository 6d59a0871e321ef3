"""What servers say of their models, read without trust: every count, name and number bounded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from agent.engine.external.derived import digest_in
from agent.engine.external.trouble import ServerTroubleError
from fleet.models.reference import canonical_name, is_hash

#: Models of one server.
MAX_MODELS: Final = 32
MAX_NAME: Final = 256
#: Tokens that Ollama and LM Studio give a model for which nothing else is set.
USUAL_CONTEXT: Final = 4096
_MAX_CONTEXT: Final = 1 << 20
_MAX_SIZE: Final = 1 << 50
_WORD: Final = 64

_NUM_CTX: Final = re.compile(r"(?:^|\n)num_ctx[ \t]{1,64}([0-9]{1,9})(?:\n|$)")


@dataclass(frozen=True)
class Listed:
    """One model as its server lists it.

    `id` is the server's name for it, `name` the one it has here. `digest` is empty where there is none; `weights` is
    what else tells two models of one name apart. `context_tokens` is 0 where it is not said, `loaded` false where the
    server has to load it first. `size_bytes` is 0 where it is not said, and so on.
    """

    id: str
    name: str
    digest: str = ""
    weights: str = ""
    context_tokens: int = 0
    loaded: bool = True
    size_bytes: int = 0
    architecture: str = ""
    quantisation: str = ""
    size_label: str = ""


def rows_of(found: object, key: str) -> list[Mapping[str, Any]]:
    """The items of a list under `key` that are objects. Raises ServerTroubleError where there is no such list.

    null counts as an empty list: it is how Go writes one.
    """
    if not isinstance(found, dict) or key not in found or not isinstance(found[key], list | None):
        raise ServerTroubleError("does not list its models as a server of this kind does")
    return [row for row in found[key] or () if isinstance(row, dict)]


def owners(found: object) -> set[str]:
    """Whom OpenAI's list of models says they are owned by, which is how servers name themselves."""
    return {row["owned_by"] for row in rows_of(found, "data") if isinstance(row.get("owned_by"), str)}


def bounded(models: Iterator[Listed]) -> tuple[Listed, ...]:
    """The first MAX_MODELS, and of each id the first."""
    kept: dict[str, Listed] = {}
    for model in models:
        kept.setdefault(model.id, model)
        if len(kept) == MAX_MODELS:
            break
    return tuple(kept.values())


def from_openai(found: object) -> Iterator[Listed]:
    """Models of `/v1/models`, with what vLLM and llama-server add."""
    for row in rows_of(found, "data"):
        name = name_of(row.get("id"))
        if not name:
            continue
        meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
        status = row["status"] if isinstance(row.get("status"), dict) else {}
        told = [str(number(meta.get(key))) for key in ("n_params", "size", "n_vocab", "n_embd", "n_ctx_train")]
        yield Listed(
            id=row["id"],
            name=name,
            weights=",".join(told) if any(told) and meta else word(row.get("root"), MAX_NAME),
            context_tokens=number(row.get("max_model_len"), _MAX_CONTEXT),
            loaded=status.get("value", "loaded") == "loaded",
            size_bytes=number(meta.get("size"), _MAX_SIZE),
        )


def from_ollama(found: object) -> Iterator[Listed]:
    """Models of `/api/tags` that run on the server itself: not those that it passes on to another."""
    for row in rows_of(found, "models"):
        name, digest = name_of(row.get("name")), digest_in(row.get("digest"))
        if not name or not digest or row.get("remote_host") or row.get("remote_model"):
            continue
        details = row["details"] if isinstance(row.get("details"), dict) else {}
        yield Listed(
            id=row["name"],
            name=name.removesuffix(":latest"),
            digest=digest,
            loaded=False,
            size_bytes=number(row.get("size"), _MAX_SIZE),
            architecture=word(details.get("family")),
            quantisation=word(details.get("quantization_level")),
            size_label=word(details.get("parameter_size")),
        )


def is_ollama(found: object) -> bool:
    """Whether this is Ollama's list: llama-server answers at the same place, but gives no digests."""
    try:
        rows = rows_of(found, "models")
    except ServerTroubleError:
        return False
    return all(digest_in(row.get("digest")) for row in rows)


def with_running(models: tuple[Listed, ...], found: object) -> tuple[Listed, ...]:
    """Ollama's models with what `/api/ps` says of those that are loaded."""
    running = {row["name"]: row for row in rows_of(found, "models") if isinstance(row.get("name"), str)}
    return tuple(
        replace(model, loaded=True, context_tokens=number(running[model.id].get("context_length"), _MAX_CONTEXT))
        if model.id in running
        else model
        for model in models
    )


@dataclass(frozen=True)
class Shown:
    """What Ollama's `/api/show` says of a model: whether it writes text, and the context it gets when it is loaded."""

    generates: bool
    context_tokens: int


def shown(found: object) -> Shown:
    """Read `/api/show`. What cannot be read is taken as usual: it only makes the model's context shorter."""
    if not isinstance(found, dict):
        raise ServerTroubleError("does not describe a model as a server of this kind does")
    abilities = found.get("capabilities")
    generates = not isinstance(abilities, list) or "completion" in abilities
    info = found["model_info"] if isinstance(found.get("model_info"), dict) else {}
    trained = number(info.get(f"{info.get('general.architecture')}.context_length"), _MAX_CONTEXT)
    parameters = found["parameters"] if isinstance(found.get("parameters"), str) else ""
    chosen = _NUM_CTX.search(parameters[: 64 * 1024])
    context = min(int(chosen[1]), _MAX_CONTEXT) if chosen else USUAL_CONTEXT
    return Shown(generates, min(context, trained) if trained else context)


def is_lmstudio(found: object) -> bool:
    """Whether this is LM Studio's own list: each model has a state."""
    try:
        rows = rows_of(found, "data")
    except ServerTroubleError:
        return False
    return bool(rows) and all(isinstance(row.get("state"), str) for row in rows)


def from_lmstudio(found: object) -> Iterator[Listed]:
    """Models of `/api/v0/models` that write text."""
    for row in rows_of(found, "data"):
        name = name_of(row.get("id"))
        if not name or row.get("type") == "embeddings":
            continue
        most = number(row.get("max_context_length"), _MAX_CONTEXT)
        loaded = row.get("state") == "loaded"
        context = number(row.get("loaded_context_length"), _MAX_CONTEXT) if loaded else 0
        weights = [word(row.get(key)) for key in ("publisher", "arch", "compatibility_type", "quantization")]
        yield Listed(
            id=row["id"],
            name=name,
            weights=",".join(weights),
            context_tokens=context or min(most or USUAL_CONTEXT, USUAL_CONTEXT),
            loaded=loaded,
            architecture=word(row.get("arch")),
            quantisation=word(row.get("quantization")),
        )


@dataclass(frozen=True)
class Props:
    """What llama-server's `/props` says: jobs at a time, and the context each gets. 0 where it does not say."""

    slots: int
    context_tokens: int


def props(found: object) -> Props:
    """Read `/props`."""
    if not isinstance(found, dict):
        raise ServerTroubleError("does not describe itself as llama-server does")
    settings = found.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    return Props(number(found.get("total_slots"), 256), number(context, _MAX_CONTEXT))


def name_of(value: object) -> str:
    """The name that a model has here, empty where the server's name cannot be one."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        return ""
    name = canonical_name(value.replace("\\", "/"))
    return "" if is_hash(name) or not name.strip() else name


def number(value: object, most: int = 1 << 53) -> int:
    """A count that is not negative, at most `most`; 0 for anything else."""
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def word(value: object, most: int = _WORD) -> str:
    """A short printable text; empty for anything else."""
    return value if isinstance(value, str) and len(value) <= most and value.isprintable() else ""
