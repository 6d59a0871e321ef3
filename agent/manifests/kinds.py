"""The kinds of manifests: what may stand in each, in which units, within which bounds.

The same is said for editors in `manifests/schema/*.json`; tests hold the two to one another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from agent.config import Label
from agent.hours import SPAN
from agent.manifests.selector import is_selector
from fleet.document.bodies import is_scope
from fleet.models.reference import is_hash

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,63}")
_MAX_REPLICAS: Final = 10_000


def _text(check: Any, message: str) -> AfterValidator:
    """A check of a text, with its own words for what is allowed."""

    def validate(value: str) -> str:
        if not check(value):
            raise PydanticCustomError("manifest", message)
        return value

    return AfterValidator(validate)


def _replicas(value: object) -> object:
    if value == "all" or (type(value) is int and 1 <= value <= _MAX_REPLICAS):
        return value
    raise PydanticCustomError("manifest", f"must be a number from 1 to {_MAX_REPLICAS}, or all")


Name = Annotated[
    str, _text(_NAME.fullmatch, "must be lower-case letters, digits, '.', '_' or '-', at most 63, no sign first")
]
Hash = Annotated[str, _text(is_hash, "must be sha256: and 64 hex digits, lower case")]
Scope = Annotated[str, _text(is_scope, "must be a scope such as infer, blobs or models")]
Version = Annotated[str, _text(_VERSION.fullmatch, "must be a version such as 1.4.2")]
#: A content hash or a name, as a request names a model.
Reference = Annotated[str, Field(min_length=1, max_length=256)]
Replicas = Annotated[int | str, BeforeValidator(_replicas)]
Copies = Annotated[int, Field(ge=1, le=_MAX_REPLICAS)]
Topic = Annotated[str, Field(min_length=1, max_length=256)]
ValuePath = Annotated[
    str,
    _text(
        re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}").fullmatch,
        "must be keys and places of lists, joined by dots, such as reading.temperature",
    ),
]
Root = Annotated[str, _text(re.compile(r"[0-9a-f]{64}").fullmatch, "must be 64 hex digits, lower case")]
Where = Annotated[
    str, _text(is_selector, "must be terms such as site=berlin, ram>=2GB, cpus>=4 or arch=aarch64, joined by commas")
]
Span = Annotated[str, _text(re.compile(SPAN).fullmatch, "must be a span of local time such as 22:00-06:00")]
#: Bytes of the largest file that can travel.
_MAX_BYTES: Final = 1 << 40


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Selector(_Part):
    """Which boxes: those that have all of these labels; without any, every box."""

    labels: dict[Label, Label] = Field(default_factory=dict, max_length=32)


class BoxSelector(Selector):
    """Which boxes: those that have all of these labels and of which every term of `where` holds."""

    where: Where | None = None


class ModelSpec(_Part):
    """A model the fleet knows: by content hash, or by where it comes from (URL, hub reference); at best both.

    It can travel between boxes where `root`, `algorithm` and `size_bytes` say how its blocks are checked.
    """

    hash: Hash | None = None
    size_bytes: int | None = Field(default=None, ge=1, le=_MAX_BYTES)
    root: Root | None = None
    algorithm: Literal["sha256", "blake3"] | None = None
    source: str | None = Field(default=None, min_length=1, max_length=1024)
    family: str | None = Field(default=None, min_length=1, max_length=64)
    size: str | None = Field(default=None, min_length=1, max_length=32)
    quant: str | None = Field(default=None, min_length=1, max_length=32)
    context_tokens: int | None = Field(default=None, ge=64, le=1 << 20)

    @model_validator(mode="after")
    def _says_which(self) -> ModelSpec:
        if self.hash is None and self.source is None:
            raise PydanticCustomError("manifest", "needs hash or source, or nobody knows which model is meant")
        if self.root is not None and (self.hash is None or self.size_bytes is None):
            raise PydanticCustomError("manifest", "root needs hash and size_bytes beside it")
        return self


class AliasSpec(_Part):
    """What a name stands for when a request asks for it: a content hash, a model's name, or another alias."""

    model: Reference


class PlacementSpec(_Part):
    """Where a model should be: on all boxes that the selector means, or on `max` of them. `min` copies are kept when a
    box that has one is gone, as far as `max` allows. `replicas` N is short for both, `all` for neither.
    """

    model: Reference
    selector: BoxSelector = BoxSelector()
    min: Copies | None = None
    max: Copies | None = None
    replicas: Replicas | None = None

    @model_validator(mode="after")
    def _one_way(self) -> PlacementSpec:
        if self.replicas is not None and (self.min is not None or self.max is not None):
            raise PydanticCustomError("manifest", "replicas stands for min and max; give it alone or leave it out")
        return self


class TransferRule(_Part):
    """When models travel to and from the boxes that the selector means, and how fast these give them (bytes a second).
    Over a `metered` link without hours nothing is fetched.
    """

    selector: BoxSelector = BoxSelector()
    hours: tuple[Span, ...] = Field(default=(), max_length=8)
    metered: bool = False
    upload_rate: int | None = Field(default=None, ge=1024, le=1 << 40)


class TransferPolicySpec(_Part):
    """Policy `transfer`. The first rule that means a box counts for it."""

    rules: tuple[TransferRule, ...] = Field(default=(), max_length=32)


class FirewallPolicySpec(_Part):
    """Policy `firewall`. `members`: every member is let in; `allow-list`: only members also allowed by name.
    `scopes` is what a member may ask of another.
    """

    mode: Literal["members", "allow-list"] = "members"
    scopes: tuple[Scope, ...] = Field(default=("blobs", "infer", "models"), max_length=16)


class RoutingPolicySpec(_Part):
    """Policy `routing`. Where requests may run and what may stand in for the model that they ask for, where neither
    they nor the configuration of their box say it.
    """

    offload: Literal["never", "prefer", "require"] = "prefer"
    substitution: Literal["none", "quant", "family"] = "none"


class Collect(_Part):
    """How messages become one prompt: each of them, one every `seconds`, a window of `count` or `seconds`, or one
    whenever the value has moved by more than `band`.
    """

    mode: Literal["every", "sample", "window", "change"] = "every"
    seconds: float | None = Field(default=None, gt=0, le=86400)
    count: int | None = Field(default=None, ge=1, le=10_000)
    band: float | None = Field(default=None, gt=0, le=1e9)


class PipelineSpec(_Part):
    """Messages of sensors in, a model's answers out.

    `topics` are filters on the broker of the boxes that the selector means, with {fleet} and {node} for theirs. `value`
    is where in a payload of JSON the value stands. `prompt` is a template over what was collected, `system` goes before
    it. `answer` is a JSON Schema that the answer must satisfy. It goes to the box's own topic of insights, or to
    `publish`. `deadline` is in seconds.
    """

    topics: tuple[Topic, ...] = Field(min_length=1, max_length=16)
    model: Reference
    prompt: str = Field(min_length=1, max_length=8192)
    system: str | None = Field(default=None, min_length=1, max_length=4096)
    value: ValuePath | None = None
    publish: Topic | None = None
    selector: Selector = Selector()
    collect: Collect = Collect()
    answer: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    priority: Literal["interactive", "normal", "bulk"] | None = None
    max_per_minute: int | None = Field(default=None, ge=1, le=6000)
    deadline: float | None = Field(default=None, gt=0, le=3600)


class VersionSpec(_Part):
    """Which version of shoal boxes should run."""

    version: Version
    selector: Selector = Selector()


class _Manifest(_Part):
    name: Name


class ModelManifest(_Manifest):
    """A model by name."""

    kind: Literal["Model"]
    spec: ModelSpec


class AliasManifest(_Manifest):
    """A name of the fleet's own for a model."""

    kind: Literal["Alias"]
    spec: AliasSpec


class PlacementManifest(_Manifest):
    """Where a model should be."""

    kind: Literal["Placement"]
    spec: PlacementSpec


class PolicyManifest(_Manifest):
    """A rule of the fleet: the firewall's. The others, routing and transfer, have schemas of their own."""

    kind: Literal["Policy"]
    name: Annotated[str, _text(lambda name: name == "firewall", "must be firewall, routing or transfer")]
    spec: FirewallPolicySpec


class RoutingPolicyManifest(_Manifest):
    """What holds for requests that do not say more."""

    kind: Literal["Policy"]
    name: Literal["routing"]
    spec: RoutingPolicySpec


class TransferPolicyManifest(_Manifest):
    """When models travel, and how fast."""

    kind: Literal["Policy"]
    name: Literal["transfer"]
    spec: TransferPolicySpec


class PipelineManifest(_Manifest):
    """A sensor pipeline."""

    kind: Literal["Pipeline"]
    spec: PipelineSpec


class VersionManifest(_Manifest):
    """A version of shoal for a group of boxes."""

    kind: Literal["Version"]
    spec: VersionSpec


#: Kind -> the first part of its path in the fleet document, and its schema.
KINDS: Final[Mapping[str, tuple[str, type[BaseModel]]]] = {
    "Model": ("model", ModelManifest),
    "Alias": ("alias", AliasManifest),
    "Placement": ("place", PlacementManifest),
    "Policy": ("policy", PolicyManifest),
    "Pipeline": ("pipe", PipelineManifest),
    "Version": ("ver", VersionManifest),
}
#: Manifests whose schema depends on the name too.
_BY_NAME: Final[Mapping[tuple[str, str], type[BaseModel]]] = {
    ("Policy", "routing"): RoutingPolicyManifest,
    ("Policy", "transfer"): TransferPolicyManifest,
}
_KIND_OF: Final = {prefix: kind for kind, (prefix, _) in KINDS.items()}


def schema_of(kind: str, name: object) -> type[BaseModel]:
    """The schema of a manifest of a kind that there is."""
    return _BY_NAME.get((kind, str(name)), KINDS[kind][1])


def path_of(kind: str, name: str) -> str:
    """Where a manifest's value stands in the fleet document."""
    return f"{KINDS[kind][0]}/{name}"


def kind_of(path: str) -> str | None:
    """The kind of manifest that a path of the fleet document belongs to."""
    return _KIND_OF.get(path.partition("/")[0])
