"""The two digest trees of a replica, kept up with every change: what governs, and facts of boxes.

They are apart so that what governs is compared and fetched first: facts rest on the certificates of their authors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fleet.document.op import Op
from fleet.document.replica import Change, Replica
from fleet.gossip.digest_tree import DigestTree
from fleet.gossip.sync_messages import TreeName


def tree_of(op: Op) -> TreeName:
    """The tree an op is in."""
    return "f" if op.kind == "node" else "g"


class Trees:
    """The trees of one replica, from now until `close`."""

    def __init__(self, replica: Replica) -> None:
        self._trees: Final[dict[TreeName, DigestTree]] = {"g": DigestTree(), "f": DigestTree()}
        for op in replica.ops.ops():
            self._trees[tree_of(op)].add(op.id)
        self.close: Final[Callable[[], None]] = replica.subscribe(self._changed)

    def __getitem__(self, name: TreeName) -> DigestTree:
        return self._trees[name]

    def _changed(self, change: Change) -> None:
        for op in change.dropped:
            self._trees[tree_of(op)].discard(op.id)
        for op in change.added:
            self._trees[tree_of(op)].add(op.id)
