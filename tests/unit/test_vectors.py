"""The published test vectors are what this code makes and reads."""

from __future__ import annotations

import json

from fleet.document.op import read_op, signature_holds
from fleet.document.opset import OpSet
from fleet.document.view import fold
from fleet.identity.genesis import Genesis
from tests.vectors import TARGET, summary, vectors


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
