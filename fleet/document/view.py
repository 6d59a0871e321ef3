"""The view: what follows from the set of ops. A pure function of the set; nothing here knows how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Final

from fleet import cbor
from fleet.document import firewall, settings
from fleet.document.authority import Authority, fold_authority
from fleet.document.facts import Box, read_box
from fleet.document.firewall import Firewall, Standing
from fleet.document.invites import Offer, offers
from fleet.document.op import Op
from fleet.document.settings import Setting
from fleet.identity.genesis import Genesis


class Governance:
    """All that admins and joins decide: authority, firewall, settings. It changes rarely, facts of boxes often."""

    def __init__(self, genesis: Genesis, governing: Iterable[Op]) -> None:
        ops = [op for op in governing if op.kind != "node"]
        self.authority: Final[Authority] = fold_authority(genesis, ops)
        live = settings.live_ops(self.authority, ops)
        self.settings: Final[Mapping[str, Setting]] = MappingProxyType(
            {path: settings.settle(found) for (kind, path), found in sorted(live.items()) if kind == "cfg"}
        )
        #: By the public half of the invite's secret.
        self.offers: Final[Mapping[bytes, Offer]] = MappingProxyType(offers(self.settings, ops))
        policy = self.settings.get(firewall.POLICY_PATH)
        entries = {bytes.fromhex(path): tuple(found) for (kind, path), found in live.items() if kind == "fw"}
        self.live: Final[Mapping[tuple[str, str], tuple[Op, ...]]] = MappingProxyType(
            {place: tuple(found) for place, found in live.items()}
        )
        self.firewall: Final[Firewall] = Firewall(
            self.authority, entries, firewall.read_policy(policy.op.body if policy else None)
        )


class View:
    """One state of the fleet document. Immutable; boxes are decoded when somebody asks for them.

    `facts` may change once this is made, but no author's own mapping within it.
    """

    def __init__(self, genesis: Genesis, governance: Governance, facts: Mapping[bytes, Mapping[str, Op]]) -> None:
        self.genesis: Final = genesis
        self.governance: Final = governance
        self.authority: Final = governance.authority
        self.settings: Final = governance.settings
        self._facts = {key: own for key, own in facts.items() if self.shows(key)}

    def shows(self, key: bytes) -> bool:
        """Whether a key is one of the boxes."""
        return key in self.authority.members and key not in self.authority.revoked

    def standing(self, key: bytes) -> Standing:
        """What a key may do on every box of the fleet."""
        return self.governance.firewall.standing(key)

    @cached_property
    def boxes(self) -> Mapping[bytes, Box]:
        """Every member that is not revoked, with what it says of itself; also those that have said nothing yet."""
        keys = sorted(key for key in self.authority.members if self.shows(key))
        return MappingProxyType({key: self.box(key) for key in keys})

    def box(self, key: bytes) -> Box:
        """One box; with empty facts for a key that is no member. Labels of its invite stand above its own."""
        box = read_box(key, self._facts.get(key, {}))
        member = self.authority.members.get(key)
        if member is None or not member.labels:
            return box
        labels = tuple(sorted({**dict(box.node.labels), **dict(member.labels)}.items()))
        return replace(box, node=replace(box.node, labels=labels))

    def facts_of(self, key: bytes) -> Mapping[str, Op] | None:
        """The latest facts of a box by path, None where it has said nothing: the same object as long as they are the
        same, in this view and in the next."""
        return self._facts.get(key)

    def facts(self) -> Iterator[tuple[bytes, str, Op]]:
        """Every fact that is shown: author, path, op."""
        for key, own in self._facts.items():
            for path, op in own.items():
                yield key, path, op

    @property
    def conflicts(self) -> Mapping[str, Setting]:
        """Settings that admins set to different values without having seen one another's."""
        return {path: setting for path, setting in self.settings.items() if setting.rivals}

    def digest(self) -> bytes:
        """A hash of everything the view says; equal on two boxes exactly when they agree."""
        authority = self.authority
        keys = {*authority.members, *authority.revoked, *self.governance.firewall.named()}
        return hashlib.blake2b(
            cbor.encode(
                [
                    sorted(authority.rank.items()),
                    sorted(authority.cut.items()),
                    sorted(authority.forked.items()),
                    sorted((key, member.how, member.op.id) for key, member in authority.members.items()),
                    sorted(op.id for op in authority.surplus_joins),
                    [[key, _standing(self.standing(key))] for key in sorted(keys)],
                    [[path, s.op.id, sorted(op.id for op in s.rivals)] for path, s in self.settings.items()],
                    sorted([key, path, op.id] for key, path, op in self.facts()),
                ]
            ),
            digest_size=32,
        ).digest()


def fold(genesis: Genesis, ops: Iterable[Op]) -> View:
    """The view of a set of ops, from nothing. Of several facts at one path the highest (seq, id) counts."""
    held = list(ops)
    facts: dict[bytes, dict[str, Op]] = {}
    for op in held:
        if op.kind == "node":
            own = facts.setdefault(op.author, {})
            if op.path not in own or (own[op.path].seq, own[op.path].id) < (op.seq, op.id):
                own[op.path] = op
    return View(genesis, Governance(genesis, held), facts)


def _standing(standing: Standing) -> list[object]:
    return [standing.admitted, sorted(standing.scopes), standing.reason]
