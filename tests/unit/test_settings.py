"""Desired state: what replaces what, and what happens when two admins do not see one another."""

from __future__ import annotations

import itertools

from fleet.document.op import Op
from fleet.document.view import View
from tests.property.fleet import Fleet, pk


def values(view: View) -> dict[str, object]:
    return {path: setting.value for path, setting in view.settings.items()}


def test_a_value_stands_until_who_has_seen_it_writes_another() -> None:
    fleet = Fleet()
    first = fleet.set("a1", "model/x", 1, hlc=900)
    second = fleet.set("a2", "model/x", 2, [first], hlc=100)
    assert values(fleet.view()) == {"model/x": 2}, "who has seen it wins, whatever the clocks say"
    assert fleet.view().conflicts == {}
    fleet.set("a1", "model/x", 3, [first, second], hlc=1)
    assert values(fleet.view()) == {"model/x": 3}


def test_two_values_at_once_go_to_the_later_and_are_shown_as_a_conflict() -> None:
    fleet = Fleet()
    early = fleet.set("a1", "model/x", "early", hlc=10)
    late = fleet.set("a2", "model/x", "late", hlc=11)
    for ops in itertools.permutations(fleet.ops):
        setting = fleet.view(ops).settings["model/x"]
        assert (setting.op, setting.rivals) == (late, (early,))
        assert set(fleet.view(ops).conflicts) == {"model/x"}


def test_an_admin_that_sees_both_ends_the_conflict() -> None:
    fleet = Fleet()
    both = [fleet.set("a1", "model/x", 1), fleet.set("a2", "model/x", 2)]
    fleet.set("a3", "model/x", 1, both, hlc=0)
    assert values(fleet.view()) == {"model/x": 1}
    assert fleet.view().conflicts == {}


def test_one_that_sees_one_of_two_leaves_the_other_standing() -> None:
    fleet = Fleet()
    one = fleet.set("a1", "model/x", 1, hlc=10)
    other = fleet.set("a2", "model/x", 2, hlc=11)
    third = fleet.set("a3", "model/x", 3, [one], hlc=12)
    setting = fleet.view().settings["model/x"]
    assert (setting.op, setting.rivals) == (third, (other,))


def test_admins_that_agree_without_knowing_are_no_conflict() -> None:
    fleet = Fleet()
    fleet.set("a1", "model/x", {"copies": 2})
    last = fleet.set("a2", "model/x", {"copies": 2})
    setting = fleet.view().settings["model/x"]
    assert (setting.op, setting.rivals) == (last, ())


def test_ties_go_to_the_higher_author_then_the_higher_id() -> None:
    fleet = Fleet()
    ops = [fleet.set(name, "model/x", name, hlc=10) for name in ("a1", "a2", "a3")]
    first = max(ops, key=lambda op: op.author)
    assert fleet.view().settings["model/x"].op == first
    assert len(fleet.view().settings["model/x"].rivals) == 2
    name = next(name for name in ("a1", "a2", "a3") if pk(name) == first.author)
    more = fleet.set(name, "model/x", "again", hlc=10)
    assert fleet.view().settings["model/x"].op == max(first, more, key=lambda op: op.id)


def test_null_takes_a_setting_back() -> None:
    fleet = Fleet()
    first = fleet.set("a1", "model/x", 1)
    fleet.set("a1", "model/x", None, [first])
    assert values(fleet.view()) == {"model/x": None}
    assert fleet.view().conflicts == {}


def test_taking_back_what_another_changes_is_a_conflict() -> None:
    fleet = Fleet()
    first = fleet.set("a1", "model/x", 1)
    changed = fleet.set("a1", "model/x", 2, [first], hlc=10)
    fleet.set("a2", "model/x", None, [first], hlc=11)
    setting = fleet.view().settings["model/x"]
    assert setting.value is None
    assert setting.rivals == (changed,)


def test_paths_and_kinds_do_not_meet() -> None:
    fleet = Fleet()
    one = fleet.set("a1", "model/x", 1)
    deny = fleet.deny("a1", "m1")
    fleet.set("a1", "model/xy", 2, [one, deny])
    fleet.set("a1", "place/x", 3, [one, deny])
    fleet.allow("a1", "m2", sup=[one, deny])
    view = fleet.view()
    assert values(view) == {"model/x": 1, "model/xy": 2, "place/x": 3}
    assert view.standing(pk("m1")).ops == (deny,)
    assert list(view.settings) == sorted(view.settings)


def test_an_op_does_not_replace_what_replaced_it() -> None:
    """Ids are hashes, so a circle cannot be made; a chain ends with its last."""
    fleet = Fleet()
    chain: list[Op] = []
    for number in range(70):
        chain.append(fleet.set(f"a{number % 3 + 1}", "model/x", number, chain[-1:], hlc=1000 - number))
    for ops in (chain, chain[::-1]):
        assert values(fleet.view(ops)) == {"model/x": 69}
        assert fleet.view(ops).conflicts == {}


def test_what_a_cut_off_admin_replaced_returns() -> None:
    fleet = Fleet()
    first = fleet.set("a1", "model/x", 1)
    fleet.set("a2", "model/x", 2, [first])
    fleet.revoke("rec", "a2", 0)
    assert values(fleet.view()) == {"model/x": 1}
