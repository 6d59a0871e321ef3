"""The published test vectors are what this code makes and reads."""

from __future__ import annotations

import json

from fleet.document.op import read_op, signature_holds, write_op
from fleet.document.opset import OpSet
from fleet.document.view import fold
from fleet.identity.genesis import Genesis
from tests.vectors import BOX, GENESIS, OTHER, TARGET, ops, summary, vectors


def test_the_published_vectors_are_those_of_this_code() -> None:
    assert json.loads(TARGET.read_text()) == vectors()


def test_the_published_ops_are_accepted_and_give_the_published_view() -> None:
    published = json.loads(TARGET.read_text())
    genesis = Genesis.read(bytes.fromhex(published["genesis"]))
    assert genesis.fleet_id.hex() == published["fleet_id"]
    held = OpSet(genesis)
    pending = [read_op(bytes.fromhex(one["raw"])) for one in published["ops"].values()]
    assert [op.id.hex() for op in pending] == [one["id"] for one in published["ops"].values()]
    assert all(signature_holds(op) for op in pending)
    for op in sorted(pending, key=lambda op: op.hlc):
        held.admit(op)
    assert summary(fold(genesis, held.ops())) == published["view"]


def test_the_labels_of_an_invite_stand_above_those_that_the_box_gives_itself() -> None:
    made = ops()
    said = write_op(
        OTHER, GENESIS.fleet_id, seq=2, hlc=0, kind="node", path="node", body={"labels": {"site": "x", "role": "pos"}}
    )
    view = fold(GENESIS, [*made.values(), said])
    assert dict(view.box(OTHER.public_key).node.labels) == {"site": "berlin", "role": "pos"}
    assert dict(view.boxes[BOX.public_key].node.labels) == {}
