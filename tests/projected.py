"""A fleet document driven by hand, and a client's copy of it: for tests of the projection and of who serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pycrdt

from fleet.document.op import Kind, Op, write_op
from fleet.document.opset import OpSet
from fleet.document.projection import MAPS, Projection
from fleet.document.view import Governance, View
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity

NOW = 1_800_000_000_000
ADMINS = [Identity.from_seed(bytes([1 + i]) * 32) for i in range(2)]
BOXES = [Identity.from_seed(bytes([100 + i]) * 32) for i in range(4)]
GENESIS = Genesis("plant", (), tuple(sorted(admin.public_key for admin in ADMINS)), b"\0" * 16)
INVITE = Identity.from_seed(b"\x50" * 32)


class Fleet:
    """The set of ops, and its view as the replica makes it: one Governance as long as nothing governing changes."""

    def __init__(self) -> None:
        self.ops = OpSet(GENESIS)
        self._governance: tuple[int, Governance] | None = None

    def write(self, author: Identity, kind: Kind, path: str, body: object, sup: Sequence[bytes] = ()) -> Op:
        seq = self.ops.highest_seq(author.public_key) + 1
        op = write_op(author, GENESIS.fleet_id, seq=seq, hlc=seq, kind=kind, path=path, body=body, sup=sup)
        self.ops.admit(op)
        return op

    def let_in(self, *boxes: Identity) -> None:
        for box in boxes:
            self.write(ADMINS[0], "cert", box.public_key.hex(), "member")

    def view(self) -> View:
        if self._governance is None or self._governance[0] != self.ops.authority_version:
            self._governance = (self.ops.authority_version, Governance(GENESIS, self.ops.governing_ops()))
        return View(GENESIS, self._governance[1], self.ops.facts())


class Copy:
    """A client's copy of the document: another Doc, which takes what the protocol brings."""

    def __init__(self) -> None:
        self.doc: Any = pycrdt.Doc()
        self.maps = {name: self.doc.get(name, type=pycrdt.Map) for name in MAPS}
        self.updates: list[bytes] = []

    def sync(self, projection: Projection) -> Copy:
        self.take(projection.answer(self.doc.get_state()))
        return self

    def follow(self, projection: Projection) -> Copy:
        self.sync(projection)
        projection.subscribe_updates(self.take)
        return self

    def take(self, update: bytes) -> None:
        self.updates.append(update)
        self.doc.apply_update(update)

    def contents(self) -> dict[str, dict[str, str]]:
        return {name: dict(entries.items()) for name, entries in self.maps.items()}
