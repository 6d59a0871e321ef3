"""After every fault and every foe, all boxes hold the same ops, say the same, and say what the rules ask for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.document import claims, opset
from fleet.document.op import ADMIN_KINDS
from fleet.document.opset import OpSet
from fleet.document.view import View, fold
from tests.property import budget
from tests.property.fleet import Fleet, incremental, pk, receive, understood
from tests.property.oracle import Expected, Most
from tests.property.world import EVERYBODY, INVITES, JOINERS, LIAR, MEMBERS, MOVES, OUTSIDER, PEACEFUL, Move, World

SEEDS = st.integers(0, (1 << 16) - 1)


def moves(weights: dict[str, int], most: int = 60) -> st.SearchStrategy[list[Move]]:
    names = [name for name, weight in weights.items() for _ in range(weight)]
    return st.lists(st.tuples(st.sampled_from(names), SEEDS), min_size=most // 2, max_size=most)


def says_what_the_rules_say(view: View, expected: Expected) -> None:
    """The view against the oracle, item by item, so that a failure names what differs."""
    authority = view.authority
    assert dict(authority.rank) == expected.rank
    assert dict(authority.cut) == expected.cut
    assert dict(authority.forked) == expected.forked
    assert set(authority.members) == expected.members
    assert {op.id for op in authority.surplus_joins} == expected.surplus
    for name in EVERYBODY:
        standing = view.standing(pk(name))
        assert (standing.scopes if standing.admitted else None) == expected.standing[pk(name)], name
    found = {
        path: (setting.value, frozenset(op.id for op in setting.rivals)) for path, setting in view.settings.items()
    }
    assert found == expected.settings
    assert {path for path, setting in view.conflicts.items()} == {path for path, (_, lost) in found.items() if lost}
    assert {(key, path): op.id for key, path, op in view.facts()} == expected.facts
    assert set(view.boxes) == expected.members - set(expected.cut)


def agree(world: World) -> View:
    """All boxes hold what was written, and one view follows from it."""
    expected = world.expected()
    views = []
    for box in world.boxes:
        assert {op.id for op in box.ops()} == expected.held
        views.append(incremental(box))
    assert len({view.digest() for view in views}) == 1
    says_what_the_rules_say(views[0], expected)
    return views[0]


@budget(500)
@given(moves(MOVES), st.integers(2, 6))
def test_all_boxes_agree_on_what_the_rules_say(made: list[Move], replicas: int) -> None:
    world = World(replicas)
    world.play(made)
    agree(world)


@budget(60)
@given(moves(PEACEFUL), st.integers(2, 6))
def test_where_nobody_lies_every_admin_and_every_member_counts(made: list[Move], replicas: int) -> None:
    world = World(replicas)
    world.play(made)
    view = agree(world)
    assert view.authority.cut == {}
    assert view.authority.forked == {}
    assert {pk(name) for name in MEMBERS} <= set(view.boxes)
    # The world's own books, without any rule: what an honest box said last is what everybody reads.
    for (name, path), op_id in world.said.items():
        if pk(name) in view.boxes:
            assert op_id in world.boxes[-1], (name, path)


@budget(60)
@given(moves(MOVES), st.integers(2, 4), SEEDS)
def test_a_view_is_a_function_of_the_set_and_of_nothing_else(made: list[Move], replicas: int, seed: int) -> None:
    world = World(replicas)
    world.play(made)
    genesis, digest = world.fleet.genesis, incremental(world.boxes[0]).digest()
    rng = random.Random(seed)
    held = list(world.boxes[0].ops())
    for _ in range(3):
        rng.shuffle(held)
        assert fold(genesis, held).digest() == digest
    # A box that hears of everything ever sent, junk too, in an order of its own.
    newcomer = OpSet(genesis)
    sent = list(world.sent)
    for _ in range(len(sent) + 2):
        rng.shuffle(sent)
        if not sum(receive(newcomer, raw) == "new" for raw in sent):
            break
    assert {op.id for op in newcomer.ops()} == {op.id for op in held}
    assert incremental(newcomer).digest() == digest
    # Seeing more first, and the rest later, ends the same.
    for author in {op.author for op in held}:
        highest = max(op.seq for op in held if op.author == author)
        assert newcomer.highest_seq(author) >= highest  # higher where a join that was given up was heard of


@budget(60)
@given(moves(MOVES), st.integers(2, 4))
def test_nothing_is_forged_and_nobodys_facts_are_taken_from_it(made: list[Move], replicas: int) -> None:
    """By the world's own books: no rule is asked."""
    world = World(replicas)
    world.play(made)
    view = agree(world)
    for box in world.boxes:
        for op in box.ops():
            assert op.id in world.written
            assert world.written[op.id].author == op.author
            assert not (op.kind in ADMIN_KINDS and op.author in (pk(LIAR), pk(OUTSIDER), *map(pk, MEMBERS)))
        for name in MEMBERS:  # they were let in at the start, so every box keeps what they say
            for (author, path), op_id in world.said.items():
                if author == name:
                    assert op_id in box, (name, path)
    assert pk(OUTSIDER) not in view.boxes
    assert pk(OUTSIDER) not in view.authority.rank
    assert pk(LIAR) not in view.authority.rank


@budget(50)
@given(moves(MOVES, 40), st.integers(2, 3))
def test_the_fold_itself_does_not_believe_who_is_no_admin(made: list[Move], replicas: int) -> None:
    """Even if the lies were in the set: acceptance keeps them out, and the view would not care."""
    world = World(replicas)
    world.play(made)
    held = list(world.boxes[0].ops())
    view = fold(world.fleet.genesis, held)
    everything = {op.id: op for op in map(understood, world.sent) if not isinstance(op, str)}
    lies = {op.id: op for op in everything.values() if op.kind in ADMIN_KINDS and op.fleet == world.fleet.id}
    assert lies.keys() >= {op.id for op in held if op.kind in ADMIN_KINDS}
    other = fold(world.fleet.genesis, [*(op for op in held if op.id not in lies), *lies.values()])
    assert dict(other.authority.rank) == dict(view.authority.rank)
    assert dict(other.authority.cut) == dict(view.authority.cut)
    assert set(other.boxes) == set(view.boxes)
    for name in EVERYBODY:
        assert other.standing(pk(name)) == view.standing(pk(name))
    assert dict(other.settings) == dict(view.settings)


@budget(60)
@given(moves({"fact": 30, "lie": 10, "gossip": 16, "sync": 4, "split": 1, "mend": 1}), st.integers(2, 5))
def test_which_facts_stay_when_a_box_has_too_many_depends_on_the_facts_alone(made: list[Move], replicas: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opset, "MAX_FACTS", 2)
        world = World(replicas, max_facts=2)
        world.play(made)
        view = agree(world)
    for key in view.boxes:
        assert sum(author == key for author, _, _ in view.facts()) <= 2


@budget(40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 30)), max_size=24), st.integers(1, 3))
def test_two_islands_that_spend_one_invite_agree_on_who_is_in(made: list[tuple[int, int, int]], uses: int) -> None:
    """Each island counts the uses that it sees; together they are too many, and the earliest stay."""
    world = World(2)
    invite = "aa" * 16
    world._islands = [0, 1]
    body = {"key": pk("token " + invite), "uses": uses, "expires": 0, "for": None, "labels": {}}
    world._write("a1", "cfg", f"invite/{invite}", body, home=0)
    world._exchange(0, 1)
    for box, joiner, at in made:
        world._claim(f"j{joiner + 1}", invite, MEMBERS[box % 3], at, home=box % 2)
    world.heal()
    view = agree(world)
    joined = set(view.boxes) - {pk(name) for name in (*MEMBERS, LIAR)}
    claims = {pk(f"j{joiner + 1}") for _, joiner, _ in made}
    assert len(joined) == min(uses, len(claims))
    if claims:
        earliest = min(at for _, _, at in made)
        assert joined & {pk(f"j{joiner + 1}") for _, joiner, at in made if at == earliest}
    assert joined | {op.author for op in view.authority.surplus_joins} == claims


CLAIMS = {"fact": 6, "invite": 4, "join": 40, "member": 1, "revoke": 1, "gossip": 12, "sync": 8, "split": 2, "mend": 2}


@budget(40)
@given(moves(CLAIMS, 60), st.integers(2, 3), st.integers(0, 2), st.integers(1, 5))
def test_which_claims_stay_when_there_are_too_many_depends_on_the_claims_alone(
    made: list[Move], replicas: int, of_member: int, surplus: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "SURPLUS_OF_MEMBER", of_member)
        patch.setattr(claims, "SHARES", 0)
        patch.setattr(claims, "SURPLUS_JOINS", surplus)
        world = World(replicas, most=Most(of_member, 0, surplus))
        world.play(made)
        agree(world)
        for box in world.boxes:
            for invite in INVITES:
                assert sum(op.kind == "join" and op.path == invite for op in box.ops()) <= surplus


@budget(12)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=40, max_size=100), SEEDS)
def test_a_flood_of_claims_keeps_none_out_that_another_member_let_in(made: list[tuple[int, int]], seed: int) -> None:
    """A box that came in with a token lets in whom it likes, with the token's other uses and any time; so do they."""
    fleet = Fleet()
    fleet.cert("a1", "m1")
    invite = INVITES[0]
    fleet.invite("a1", invite, 3)
    thief = fleet.join("k", invite, "m1", 1)
    honest = [fleet.join(name, invite, "m1", 1000 + at) for at, name in enumerate(JOINERS[:2])]
    flooders = ["k"]
    for at, (by, time) in enumerate(made):
        fleet.join(f"x{at}", invite, flooders[min(by, len(flooders) - 1)], time)
        flooders.append(f"x{at}")
        if at % 8 == 0:
            fleet.fact(f"x{at}", "node", at)
    rng = random.Random(seed)
    sets = []
    for _ in range(3):
        rng.shuffle(fleet.ops)
        replica = fleet.replica()
        assert {op.id for op in (thief, *honest)} <= {op.id for op in replica.ops()}
        sets.append({op.id for op in replica.ops()})
    assert sets[0] == sets[1] == sets[2]
    fleet.revoke("a1", "k")
    assert {pk(name) for name in JOINERS[:2]} <= set(fleet.view().boxes)
