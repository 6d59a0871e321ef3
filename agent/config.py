"""The configuration of one agent: every key, its unit, its default and its bounds.

Reading a file, and saying where in it an error stands, is `agent.config_file`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from fleet.gossip.presence import MAX_AGE
from fleet.models.substitution import Substitution

Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]

_MEMORY: Final = re.compile(r"([1-9][0-9]?|100)%|[1-9][0-9]{0,5}(\.[0-9]{1,3})?(MiB|GiB)")


def _memory(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 << 20 <= value <= 1 << 50:
        return value
    if isinstance(value, str) and _MEMORY.fullmatch(value):
        return value
    raise ValueError("must be a number of bytes from 1048576 on, or a text such as 800MiB, 1.5GiB or 60%")


#: A number of bytes, or a text: 800MiB, 1.5GiB, or a share of the box's memory as 60%.
Memory = Annotated[int | str, PlainValidator(_memory)]


def _layers(value: object) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= 10_000):
        return value
    raise ValueError("must be auto, or a number from -1 (all) to 10000")


#: As many layers as fit, or how many; -1 for all.
GpuLayers = Annotated[Literal["auto"] | int, PlainValidator(_layers)]


def _switch(value: object) -> str:
    # YAML reads on and off as true and false.
    word = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if isinstance(word, str) and word in ("auto", "on", "off"):
        return word
    raise ValueError("must be auto, on or off")


Switch = Annotated[Literal["auto", "on", "off"], PlainValidator(_switch)]


def _lane(value: object) -> int | str:
    if value is False or value == "off":
        return "off"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return value
    raise ValueError("must be a port, 0 for any, or off")


#: A TCP port, 0 for any, or off.
Lane = Annotated[int | Literal["off"], PlainValidator(_lane)]

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]

QuietHours = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$")]
PeerId = Annotated[str, Field(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]

EngineKind = Literal["auto", "ollama", "lmstudio", "llama-server", "vllm", "openai"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetConfig(_Section):
    """The peer-to-peer side. `peers` are multiaddrs that end in /p2p/PEERID, dialled besides those that the fleet
    document names. Who may connect is said in the document, not here.

    `announce` are multiaddrs without a PeerID that others are told in place of this box's own, for one that they reach
    through a port of another machine, such as that of a container. `fast_lane_port` is the TCP port over which blocks
    of models are given, beside the links.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4210",)
    announce: tuple[str, ...] = Field(default=(), max_length=8)
    peers: tuple[str, ...] = ()
    mdns: bool = True
    fast_lane_port: Lane = 0


class HttpConfig(_Section):
    """The HTTP endpoint. An address other than loopback needs `api_key_file` (one key a line, mode 0600)."""

    listen: str = "127.0.0.1:8420"
    api_key_file: Path | None = None


class ModelConfig(_Section):
    """A model this box holds. `name` defaults to the file's stem, lower case.

    `context_tokens` and `slots` override those of the engine for this model; `memory_budget` is the most it may take
    of the engine's.
    """

    path: Path
    name: str | None = Field(default=None, min_length=1, max_length=256)
    context_tokens: int | None = Field(default=None, ge=64, le=1 << 20)
    slots: int | None = Field(default=None, ge=1, le=64)
    memory_budget: Memory | None = None


class EngineConfig(_Section):
    """How models are run. `threads` None takes all cores, less one where there are more than two.

    `slots` is how many requests a model runs at a time. `memory_budget` is for all models together, None for what the
    box has available less a reserve; a model gets less context and fewer slots where it would not fit.

    `session_cache_mib` is how much of the disk a model may take for conversations that have a name
    (`prompt_cache_key`), 0 for none. `gpu_layers` are layers of a model on a GPU, -1 for all, and auto for as many as
    fit where there is one. With `detect`, servers at well-known ports of this machine are looked for
    (`agent.engine_url`).
    """

    context_tokens: int = Field(default=4096, ge=64, le=1 << 20)
    slots: int = Field(default=4, ge=1, le=64)
    memory_budget: Memory | None = None
    threads: int | None = Field(default=None, ge=1, le=512)
    gpu_layers: GpuLayers = "auto"
    flash_attention: Switch = "auto"
    max_queue: int = Field(default=32, ge=0, le=10_000)
    session_cache_mib: int = Field(default=256, ge=0, le=1 << 20)
    preload: bool = True
    load_timeout: Seconds = 120.0
    detect: bool = False


class ExternalEngineConfig(_Section):
    """An inference server beside this agent whose models count as held here. One that is not `enabled` is never used.

    `models` are those to take, None for all; `slots` is how many jobs it is given at a time, None for what is known of
    its kind; with `lend` peers may use it too.
    """

    kind: EngineKind = "auto"
    url: str = Field(min_length=1, max_length=512)
    enabled: bool = True
    api_key_file: Path | None = None
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] | None = Field(default=None, max_length=64)
    context_tokens: int | None = Field(default=None, ge=64, le=1 << 20)
    slots: int | None = Field(default=None, ge=1, le=256)
    lend: bool = True


class TimeoutsConfig(_Section):
    """Deadlines in seconds. `drain` is how long running jobs may finish after SIGTERM."""

    connect: Seconds = 3.0
    first_token: Seconds = 30.0
    inter_token: Seconds = 10.0
    total: Seconds = 600.0
    drain: Seconds = 20.0


class RoutingConfig(_Section):
    """Where jobs run. `threshold` and `borrow_only_below` are tokens per second that a model decodes.

    A box that decodes below `threshold` asks faster ones first. One whose best model is below `borrow_only_below` runs
    nothing for others. A box takes no jobs of others while more than `max_memory` of its memory is used, or others than
    its own models use more than `max_cpu` of its CPU. Who was not heard for `silent_after` seconds is not asked.
    `offload` is where requests of this box's clients may run and `substitution` what may stand in for the model that
    they ask for, where they do not say; None for what policy `routing` of the fleet says, or else prefer and none.
    """

    threshold: float = Field(default=10.0, ge=0, le=1e6, allow_inf_nan=False)
    borrow_only_below: float = Field(default=3.0, ge=0, le=1e6, allow_inf_nan=False)
    max_cpu: float = Field(default=0.9, gt=0, le=1, allow_inf_nan=False)
    max_memory: float = Field(default=0.9, gt=0, le=1, allow_inf_nan=False)
    silent_after: float = Field(default=MAX_AGE, ge=1, le=86_400, allow_inf_nan=False)
    offload: Literal["never", "prefer", "require"] | None = None
    substitution: Substitution | None = None


class LendTermsConfig(_Section):
    """How much other boxes may ask of this one, each by itself; 0 for no limit. Tokens are of prompts and answers."""

    requests_per_minute: int = Field(default=0, ge=0, le=1_000_000)
    tokens_per_day: int = Field(default=0, ge=0, le=1 << 40)


class LendConfig(LendTermsConfig):
    """What this box does for others; who may ask at all is said in the fleet document.

    `max_share` is the part of a model's slots that their jobs may have at a time, one slot at least: with less than 1
    this box's own clients never wait for all of them. `quiet_hours` are spans of local time, such as 08:00-20:00, in
    which nothing is lent. `boxes` has the terms of single boxes, by PeerID.
    """

    enabled: bool = True
    max_share: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    quiet_hours: tuple[QuietHours, ...] = Field(default=(), max_length=16)
    boxes: dict[PeerId, LendTermsConfig] = Field(default_factory=dict, max_length=1024)


class TransferConfig(_Section):
    """How models travel to and from this box. `keep_free` is what of the disk they leave to others.

    Within `hours` alone, spans of local time, they do; over a `metered` link without hours nothing is fetched.
    `upload_rate` is bytes a second that this box gives at most, `slots` how many boxes get blocks of a model at a time.
    `gone_after` is how many seconds a box has to be out of reach until the fleet is told so, and others get what it was
    to hold; `surplus_after` how many a copy has to be unwanted here until it is deleted, where others keep theirs.
    `hub` is where hf:ORG/REPO/FILE is fetched from, None for what the environment's HF_ENDPOINT says, or else
    https://huggingface.co.
    """

    keep_free: Memory = "1GiB"
    hours: tuple[QuietHours, ...] = Field(default=(), max_length=16)
    metered: bool = False
    upload_rate: Memory | None = None
    slots: int = Field(default=4, ge=2, le=4)
    gone_after: Seconds = 300.0
    surplus_after: Seconds = 3600.0
    hub: str | None = Field(default=None, pattern=r"^https?://[!-~]{1,200}$")


class MqttConfig(_Section):
    """Jobs and sensors over an MQTT broker; none without `url`, mqtt://HOST[:PORT] or mqtts:// for TLS.

    `user` and `password_file` (mode 0600) are what the broker knows this box by; `ca_file` is whose certificate its own
    is signed with, None for those that the system trusts; `cert_file` and `key_file` are this box's own. `fleet` is the
    level of topics, None for the fleet's name. With `ingress` jobs for any box of the fleet are taken. `model` answers
    requests that name none, None for one that is there. `reply_to` are filters of the topics that requesters may want
    answers on. `running` jobs run at a time and `waiting` beside; `deadline` is of those that have none (seconds).
    `outbox` is how many messages are kept while the broker is away. `home_assistant` lets it find this box.
    """

    url: str | None = Field(default=None, max_length=512)
    user: str | None = Field(default=None, min_length=1, max_length=256)
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    fleet: str | None = Field(default=None, pattern=r"^[a-z0-9_][a-z0-9_.-]{0,62}$")
    ingress: bool = True
    model: str | None = Field(default=None, min_length=1, max_length=256)
    reply_to: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(default=("#",), max_length=32)
    running: int = Field(default=8, ge=1, le=256)
    waiting: int = Field(default=256, ge=0, le=10_000)
    requests_per_second: float = Field(default=50.0, gt=0, le=100_000, allow_inf_nan=False)
    deadline: Seconds = 600.0
    outbox: int = Field(default=10_000, ge=100, le=1_000_000)
    home_assistant: bool = True


class AuditConfig(_Section):
    """What is kept of the audit trail: so many days, and so many MiB of disk at most, the oldest going first."""

    keep_days: int = Field(default=30, ge=1, le=3650)
    max_mib: int = Field(default=64, ge=1, le=1 << 20)


class LogConfig(_Section):
    """Where the agent's own logs go: standard error, human on a terminal, JSON otherwise (`auto`)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class Config(_Section):
    """The whole configuration. Relative paths are relative to the file that names them."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    state_dir: Path = Path("/var/lib/shoal")
    seed_file: Path | None = None
    labels: dict[Label, Label] = Field(default_factory=dict, max_length=32)
    net: NetConfig = NetConfig()
    http: HttpConfig = HttpConfig()
    models: tuple[ModelConfig, ...] = ()
    engine: EngineConfig = EngineConfig()
    engines: tuple[ExternalEngineConfig, ...] = Field(default=(), max_length=8)
    timeouts: TimeoutsConfig = TimeoutsConfig()
    routing: RoutingConfig = RoutingConfig()
    lend: LendConfig = LendConfig()
    transfer: TransferConfig = TransferConfig()
    mqtt: MqttConfig = MqttConfig()
    audit: AuditConfig = AuditConfig()
    log: LogConfig = LogConfig()
