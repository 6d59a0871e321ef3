"""What boxes say of themselves, read out of the bodies of node ops.

A fact is believed of its author only. What does not fit its schema is read as absent, never as an error: a box may
write nonsense about itself, and that must not keep anybody from reading the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet import cbor
from fleet.document import bodies
from fleet.document.op import Op
from fleet.errors import RefusedOpError

_MAX_TEXT: Final = 256
_MAX_ADDRS: Final = 16
_MAX_COUNT: Final = 1 << 62
#: Boxes that one box can say are gone.
MAX_GONE: Final = 32
#: Jobs or tokens that one box can have consumed from another: 10,000 tokens a second for three years.
_MAX_USED: Final = 1 << 40


@dataclass(frozen=True)
class Node:
    """The fact at `node`. `memory` and `disk` in bytes; `instance` tells two boxes with one key apart.

    `space` is how many bytes of further models the disk takes, `budget` the memory that models may take together; None
    where the box does not say, as older ones do not.
    """

    name: str = ""
    version: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    arch: str = ""
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    gpu: str = ""
    instance: str = ""
    space: int | None = None
    budget: int | None = None

    def body(self) -> object:
        """As it is written."""
        return {
            "name": self.name,
            "version": self.version,
            "labels": dict(self.labels),
            "arch": self.arch,
            "cpus": self.cpus,
            "memory": self.memory,
            "disk": self.disk,
            "gpu": self.gpu,
            "instance": self.instance,
            **({} if self.space is None else {"space": self.space}),
            **({} if self.budget is None else {"budget": self.budget}),
        }


@dataclass(frozen=True)
class Holding:
    """The fact at `hold/HASH`: a model on this box, `complete` from 0 to 1."""

    hash: str
    name: str = ""
    size: int = 0
    complete: float = 0.0


@dataclass(frozen=True)
class Rate:
    """The fact at `perf/MODEL-HASH`: measured tokens per second, 0 where unknown, and what ran the model."""

    hash: str
    decode: float = 0.0
    prefill: float = 0.0
    engine: str = ""


@dataclass(frozen=True)
class Used:
    """The fact at `used/PEER-KEY`: what this box consumed from a peer since it joined."""

    peer: bytes
    jobs: int = 0
    tokens: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Gone:
    """The fact at `gone/PEER-KEY`: this box has not heard that one for long, as of `hlc`."""

    peer: bytes
    hlc: int


@dataclass(frozen=True)
class Box:
    """One member with all that it says of itself. `seq` is the highest of its facts, `written` their latest hlc."""

    key: bytes
    node: Node
    addrs: tuple[str, ...] = ()
    holdings: tuple[Holding, ...] = ()
    rates: tuple[Rate, ...] = ()
    used: tuple[Used, ...] = ()
    seq: int = 0
    written: int = 0
    gone: tuple[Gone, ...] = ()


def read_box(key: bytes, facts: Mapping[str, Op]) -> Box:
    """A box out of its latest facts by path."""
    node = Node()
    addrs: tuple[str, ...] = ()
    holdings: list[Holding] = []
    rates: list[Rate] = []
    used: list[Used] = []
    gone: list[Gone] = []
    for path, op in facts.items():
        value = _decode(op.body)
        name, _, rest = path.partition("/")
        if value is None:
            continue  # taken back
        if path == "node" and isinstance(value, dict):
            node = _node(value)
        elif path == "addr":
            addrs = read_addrs(op.body)
        elif name == "hold" and isinstance(value, dict):
            complete = min(1.0, _number(value.get("complete")))
            holdings.append(Holding(rest, _text(value.get("name")), _count(value.get("size")), complete))
        elif name == "perf" and isinstance(value, dict):
            rated = _number(value.get("decode")), _number(value.get("prefill"))
            rates.append(Rate(rest, *rated, _text(value.get("engine"))))
        elif name == "used" and isinstance(value, dict) and _is_hex_key(rest):
            counts = (_count(value.get(what), _MAX_USED) for what in ("jobs", "tokens", "failures"))
            used.append(Used(bytes.fromhex(rest), *counts))
        elif name == "gone" and value is True and _is_hex_key(rest):
            gone.append(Gone(bytes.fromhex(rest), op.hlc))
    return Box(
        key,
        node,
        addrs,
        tuple(sorted(holdings, key=lambda h: h.hash)),
        tuple(sorted(rates, key=lambda r: r.hash)),
        tuple(sorted(used, key=lambda u: u.peer)),
        max((op.seq for op in facts.values()), default=0),
        max((op.hlc for op in facts.values()), default=0),
        tuple(sorted(gone, key=lambda g: g.peer))[:MAX_GONE],
    )


def read_addrs(body: bytes) -> tuple[str, ...]:
    """The multiaddrs at `addr`, at most 16; they are not checked beyond being text."""
    value = _decode(body)
    if not isinstance(value, list):
        return ()
    return tuple(addr for addr in value[:_MAX_ADDRS] if type(addr) is str and 0 < len(addr) <= _MAX_TEXT)


def _decode(body: bytes) -> object:
    try:
        return cbor.decode(body)
    except cbor.CborError:
        return None


def _node(value: Mapping[object, object]) -> Node:
    try:
        labels = bodies.read_labels(value.get("labels", {}))
    except RefusedOpError:
        labels = ()
    return Node(
        name=_text(value.get("name")),
        version=_text(value.get("version")),
        labels=labels,
        arch=_text(value.get("arch")),
        cpus=_count(value.get("cpus")),
        memory=_count(value.get("memory")),
        disk=_count(value.get("disk")),
        gpu=_text(value.get("gpu")),
        instance=_text(value.get("instance")),
        space=_count(value["space"]) if "space" in value else None,
        budget=_count(value["budget"]) if "budget" in value else None,
    )


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if type(value) is str and value.isprintable() else ""


def _count(value: object, most: int = _MAX_COUNT) -> int:
    return value if type(value) is int and 0 <= value <= most else 0


def _number(value: object) -> float:
    if type(value) is int and 0 <= value <= _MAX_COUNT:
        return float(value)
    return value if type(value) is float and math.isfinite(value) and value >= 0 else 0.0


def _is_hex_key(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
