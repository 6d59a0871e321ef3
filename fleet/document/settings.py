"""Desired state: the value of every configuration path, and where admins contradict one another. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleet import cbor
from fleet.document.authority import Authority
from fleet.document.bodies import read_firewall
from fleet.document.firewall import POLICY_PATH, read_policy
from fleet.document.op import Op


@dataclass(frozen=True)
class Setting:
    """The value at a path: `op` holds it; `rivals` are concurrent ops with another value that lost to it."""

    op: Op
    rivals: tuple[Op, ...] = ()

    @property
    def value(self) -> object:
        """The plain value; None where it was deleted, or cannot be read."""
        try:
            return cbor.decode(self.op.body)
        except cbor.CborError:
            return None


def live_ops(authority: Authority, ops: Iterable[Op]) -> dict[tuple[str, str], list[Op]]:
    """Firewall and configuration ops that count and that no op that counts has superseded, by (kind, path).

    An op is superseded only by one of its own kind and path. What closes doors, a deny or the policy `allow-list`,
    counts also from a forked branch.
    """
    # Sorted, so that what is made of them is the same to the last detail on every box.
    candidates = sorted((op for op in ops if op.kind in ("fw", "cfg") and op.author in authority.rank), key=_id)
    superseded = {(op.kind, op.path, old) for op in candidates if op.sup and authority.counts(op) for old in op.sup}
    live: dict[tuple[str, str], list[Op]] = {}
    for op in candidates:
        if not (authority.counts(op) or (_closes(op) and authority.closes_a_door(op))):
            continue
        if (op.kind, op.path, op.id) not in superseded:
            live.setdefault((op.kind, op.path), []).append(op)
    return live


def settle(ops: Iterable[Op]) -> Setting:
    """One value out of the live ops of a path: the latest by (hlc, author, id)."""
    ordered = sorted(ops, key=lambda op: (op.hlc, op.author, op.id), reverse=True)
    winner = ordered[0]
    return Setting(winner, tuple(op for op in ordered[1:] if op.body != winner.body))


def _id(op: Op) -> bytes:
    return op.id


def _closes(op: Op) -> bool:
    if op.kind == "fw":
        return read_firewall(op.body).verdict == "deny"
    return op.path == POLICY_PATH and read_policy(op.body).mode == "allow-list"
