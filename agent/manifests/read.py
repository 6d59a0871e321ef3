"""Reading manifests: every document of a YAML text, and every mistake in it with its line and what would be valid."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from pydantic import ValidationError

from agent.addresses import short
from agent.config_file import explain, without_empty
from agent.errors import ConfigError
from agent.manifests.kinds import KINDS, path_of, schema_of
from agent.yaml_text import MAX_BYTES, MAX_PROBLEMS, Problems, compose, plain_value
from fleet import cbor

#: Documents in one file.
MAX_DOCUMENTS: Final = 1000
#: Bytes of one value: an op has at most 16 KiB, with its signature and the ids of what it replaces.
MAX_VALUE: Final = 12 * 1024


class ManifestError(ConfigError):
    """Manifests that cannot be used; the message has every mistake as `file:line: what, and what would be valid`."""

    code = "manifest"


@dataclass(frozen=True)
class Manifest:
    """One document: `spec` is the value at `path` in the fleet document, `line` where it starts in its file, `lines`
    where its keys and items stand, by the way there."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    source: str
    line: int
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def path(self) -> str:
        """Where its value stands in the fleet document."""
        return path_of(self.kind, self.name)

    @property
    def body(self) -> bytes:
        """The value as it is written."""
        return cbor.encode(self.spec)


def read_manifests(texts: Iterable[tuple[str, str]]) -> list[Manifest]:
    """The manifests of (source, text) pairs, in their order; raises ManifestError that lists the mistakes of all."""
    found: list[Manifest] = []
    mistakes: list[str] = []
    first: dict[str, Manifest] = {}
    for source, text in texts:
        if len(text) > MAX_BYTES:
            mistakes.append(f"{source}:1: larger than {MAX_BYTES} characters; split it")
            continue
        problems = Problems(source)
        roots = compose(text, problems, MAX_DOCUMENTS)
        mistakes += _mistakes(problems)
        for root in roots:
            try:
                manifest = _read(root, source)
            except ConfigError as error:
                mistakes += error.message.splitlines()
                continue
            if manifest is None:
                continue
            other = first.setdefault(manifest.path, manifest)
            if other is not manifest:
                mistakes.append(
                    f"{source}:{manifest.line}: {manifest.kind} {manifest.name} is given twice, first at"
                    f" {other.source}:{other.line}"
                )
            found.append(manifest)
    if mistakes:
        more = [f"and {len(mistakes) - MAX_PROBLEMS} more"] if len(mistakes) > MAX_PROBLEMS else []
        raise ManifestError("\n".join(mistakes[:MAX_PROBLEMS] + more), details={"mistakes": mistakes})
    return found


def _read(root: yaml.Node, source: str) -> Manifest | None:
    """One document; None for an empty one. Raises ConfigError with its mistakes."""
    line = root.start_mark.line + 1
    problems = Problems(source)
    problems.lines[()] = line
    if isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null":
        return None
    if not isinstance(root, yaml.MappingNode):
        problems.add_line(line, "a manifest is a mapping with the keys kind, name, spec")
        problems.stop_if_any()
    values = plain_value(root, (), problems)
    problems.stop_if_any()
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        problems.add(("kind",), _unknown_kind(kind))
        problems.stop_if_any()
    model = schema_of(kind, values.get("name"))
    values = without_empty(values, model)
    try:
        # The strict rules for JSON, as for configurations.
        model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            # A mapping's key that does not fit is reported below the key, where nothing stands.
            location = problem["loc"][:-1] if problem["loc"][-1:] == ("[key]",) else problem["loc"]
            problems.add(location, explain(location, problem, model))
    problems.stop_if_any()
    manifest = Manifest(kind, values["name"], values["spec"], source, line, problems.lines)
    reason = _not_writable(manifest.spec)
    if reason:
        problems.add(("spec",), f"spec: {reason}")
    problems.stop_if_any()
    return manifest


def _unknown_kind(kind: object) -> str:
    if kind is None:
        return f"kind is missing; kinds: {', '.join(KINDS)}"
    near = difflib.get_close_matches(str(kind).capitalize(), KINDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"kinds: {', '.join(KINDS)}"
    return f"unknown kind {short(str(kind))}; {hint}"


def _not_writable(spec: Mapping[str, Any]) -> str | None:
    """Why a value cannot stand in an op; None if it can."""
    body = cbor.encode(spec)
    if len(body) > MAX_VALUE:
        return f"takes {len(body)} bytes, and a value has at most {MAX_VALUE}"
    try:
        cbor.decode_canonical(body)
    except cbor.CborError:
        return f"is nested more than {cbor.MAX_DEPTH} deep, or has a number of more than 64 bits"
    return None


def _mistakes(problems: Problems) -> list[str]:
    try:
        problems.stop_if_any()
    except ConfigError as error:
        return error.message.splitlines()
    return []
