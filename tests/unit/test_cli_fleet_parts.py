"""What the fleet commands work out before they do anything: whom a text names, what ops would change, what counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.client import DEFAULT_URL, ClientError
from agent.cli.command import find_place
from agent.cli.document import Document
from agent.cli.effect import effects, superseding, with_ops
from agent.cli.naming import Names
from agent.cli.verdict import Verdicts, value_text
from agent.document_disk import locked_state_dir
from fleet.document.op import MAX_SUP, Op, write_op
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of

BOXES = [Identity.from_seed(seed_of(f"box {number}")) for number in range(4)]


def node(fleet: Fleet, box: Identity, name: str) -> Op:
    body = {"name": name, "labels": {}}
    return write_op(box, fleet.genesis.fleet_id, seq=1, hlc=1, kind="node", path="node", body=body)


def document(fleet: Fleet, *more: Op) -> Document:
    return Document(fleet.genesis, [*fleet.certify(*(box.peer_id for box in BOXES)), *more])


def test_a_key_is_found_by_each_of_its_names() -> None:
    fleet = Fleet()
    names = Names(document(fleet, node(fleet, BOXES[0], "till-1")).view)
    key = BOXES[0].public_key
    for text in ("till-1", key.hex(), key.hex().upper(), BOXES[0].peer_id, BOXES[0].peer_id[-8:], names.of(key)[-9:-1]):
        assert names.find(text) == key, text
    assert names.find(f" {BOXES[0].peer_id}\n") == key
    assert names.of(key) == f"till-1 (…{BOXES[0].peer_id[-8:]})"


def test_a_name_of_two_boxes_is_never_guessed() -> None:
    fleet = Fleet()
    names = Names(document(fleet, node(fleet, BOXES[0], "till"), node(fleet, BOXES[1], "till")).view)
    with pytest.raises(ClientError, match="2 boxes") as caught:
        names.find("till")
    assert BOXES[0].peer_id in caught.value.message
    assert BOXES[1].peer_id in caught.value.message


def test_no_box_can_call_itself_what_a_key_is_called() -> None:
    fleet = Fleet()
    victim, new = BOXES[1], Identity.from_seed(seed_of("an operator's new key"))
    end = victim.peer_id[-8:]
    for name in (new.peer_id, victim.peer_id, victim.public_key.hex()):
        names = Names(document(fleet, node(fleet, BOXES[0], name)).view)
        assert names.find(new.peer_id) == new.public_key
        assert names.find(victim.peer_id) == victim.public_key
        assert names.find(victim.public_key.hex()) == victim.public_key
    names = Names(document(fleet, node(fleet, BOXES[0], end)).view)
    with pytest.raises(ClientError, match="2 boxes"):
        names.find(end)
    names = Names(document(fleet, node(fleet, BOXES[0], "admin")).view)
    assert names.of(BOXES[0].public_key).startswith("a box that calls itself")
    assert names.of(fleet.admin.public_key).startswith("admin (")


def test_a_name_that_is_none_brings_up_the_nearest() -> None:
    fleet = Fleet()
    names = Names(document(fleet, node(fleet, BOXES[0], "till-1")).view)
    with pytest.raises(ClientError, match="did you mean 'till-1'"):
        names.find("til-1")
    with pytest.raises(ClientError, match="mistyped"):
        names.find(BOXES[0].peer_id[:20] + "z" + BOXES[0].peer_id[21:])


def test_effects_of_a_revocation_reach_what_the_admin_had_written() -> None:
    fleet, rogue = Fleet(), BOXES[3]
    made = [
        fleet.write("cert", rogue.public_key.hex(), "admin"),
        fleet.write("cert", BOXES[0].public_key.hex(), "member", author=rogue),
        fleet.write("cfg", "model/smol", {"source": "x"}, author=rogue),
    ]
    before = Document(fleet.genesis, made)
    revoke = fleet.write("revoke", rogue.public_key.hex(), 0)
    found = {
        (one.about, one.subject): (one.before, one.after) for one in effects(before.view, with_ops(before, [revoke]))
    }
    assert found.keys() == {
        ("box", BOXES[0].peer_id),
        ("box", rogue.peer_id),
        ("admin", rogue.peer_id),
        ("setting", "model/smol"),
    }
    assert found["box", BOXES[0].peer_id][1].startswith("unknown key")
    assert found["admin", rogue.peer_id] == ("admin of rank 2", "cut after its op 0")
    assert found["setting", "model/smol"][1] == "-"
    assert effects(before.view, before.view) == []


def test_more_values_than_one_op_can_name_are_all_replaced() -> None:
    fleet = Fleet()
    key = BOXES[0].public_key.hex()
    denies = [fleet.write("fw", key, ["deny", []]) for _ in range(MAX_SUP + 1)]
    before = document(fleet, *denies)
    drafts = superseding(before.view, "fw", key, ["allow", []])
    assert [len(draft.sup) for draft in drafts] == [MAX_SUP, 1]
    allows = [fleet.write(draft.kind, draft.path, draft.body, draft.sup) for draft in drafts]
    assert with_ops(before, allows[:1]).standing(BOXES[0].public_key).reason == "denied by the firewall"
    assert with_ops(before, allows).standing(BOXES[0].public_key).admitted


def test_every_reason_why_an_op_does_not_count() -> None:
    fleet, rogue = Fleet(), BOXES[3]
    rogue_key, guest = rogue.public_key.hex(), BOXES[2].public_key.hex()
    first = fleet.write("cfg", "model/a", {"source": "1"})
    ops = {
        "makes the rogue an admin": fleet.write("cert", rogue_key, "admin"),
        "first": first,
        "second": fleet.write("cfg", "model/a", {"source": "2"}, [first.id]),
        "kept": fleet.write("fw", guest, ["allow", []], author=rogue),
        "late": fleet.write("fw", guest, ["allow", ["infer"]], author=rogue),
        "revoke": fleet.write("revoke", rogue_key, 1),
        "too high": fleet.write("revoke", fleet.recovery.public_key.hex(), 0),
        "rival one": fleet.write("cfg", "model/b", {"source": "1"}),
        "rival two": fleet.write("cfg", "model/b", {"source": "2"}),
        "fact": node(fleet, BOXES[0], "till-1"),
        "stranger's fact": node(fleet, BOXES[1], "till-2"),
        "member": fleet.certify(BOXES[0].peer_id)[0],
        "member again": fleet.certify(BOXES[0].peer_id)[0],
    }
    view = Document(fleet.genesis, list(ops.values())).view
    verdicts = Verdicts(view, list(ops.values()))
    why = {name: verdicts.why_not(op) for name, op in ops.items()}
    counting = {"makes the rogue an admin", "second", "kept", "revoke", "rival two", "fact", "member"}
    assert {name for name, reason in why.items() if not reason} == counting
    assert "replaced by admin" in why["first"]
    assert "only its ops up to 1 count" in why["late"]
    assert "higher rank" in why["too high"]
    assert "in conflict" in why["rival one"]
    assert "no member" in why["stranger's fact"]
    assert "before" in why["member again"]
    assert value_text(ops["kept"], Names(view)) == "allow"


def test_a_box_is_named_by_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOAL_API_KEY", raising=False)
    assert find_place(None, None, None, None).url == DEFAULT_URL
    assert find_place(None, "http://box:1", None, None).state_dir is None
    alone = find_place(None, None, None, tmp_path / "state")
    assert (alone.url, alone.state_dir) == (None, tmp_path / "state")
    with locked_state_dir(tmp_path / "state"):
        assert find_place(None, None, None, tmp_path / "state").url == DEFAULT_URL
    config = tmp_path / "c.yaml"
    config.write_text("name: a\nstate_dir: s\nhttp: {listen: '0.0.0.0:9', api_key_file: k}\n")
    place = find_place(config, None, None, None)
    assert (place.url, place.api_key_file, place.state_dir) == ("http://127.0.0.1:9", tmp_path / "k", tmp_path / "s")
    # The key of this box's agent is for nobody else.
    assert find_place(config, "http://box:1", None, None).api_key_file is None
