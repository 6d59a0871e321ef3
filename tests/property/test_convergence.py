"""After every fault and every foe, all boxes hold the same ops, say the same, and say what the rules ask for."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.document.view import View, fold
from tests.property.fleet import incremental, pk
from tests.property.oracle import Expected
from tests.property.world import EVERYBODY, MOVES, Move, World

QUICK = settings(
    deadline=None, derandomize=True, max_examples=250, suppress_health_check=[HealthCheck.too_slow], database=None
)


def moves(weights: dict[str, int], most: int = 60) -> st.SearchStrategy[list[Move]]:
    names = [name for name, weight in weights.items() for _ in range(weight)]
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, (1 << 16) - 1)), min_size=most // 3, max_size=most)


def says_what_the_rules_say(view: View, expected: Expected) -> None:
    """The view against the oracle, item by item, so that a failure names what differs."""
    authority = view.authority
    assert dict(authority.rank) == expected.rank
    assert dict(authority.cut) == expected.cut
    assert {**authority.forked} == expected.forked
    assert set(authority.members) == expected.members
    assert {op.id for op in authority.surplus_joins} == expected.surplus
    for name in EVERYBODY:
        standing = view.standing(pk(name))
        assert (standing.scopes if standing.admitted else None) == expected.standing[pk(name)], name
    found = {
        path: (setting.value, frozenset(op.id for op in setting.rivals)) for path, setting in view.settings.items()
    }
    assert found == expected.settings
    assert {(key, path): op.id for key, path, op in view.facts()} == expected.facts
    assert set(view.boxes) == expected.members - set(expected.cut)


def agree(world: World) -> View:
    """All boxes hold what was written, and one view follows from it whichever way it is worked out."""
    expected = world.expected()
    views = []
    for box in world.boxes:
        assert {op.id for op in box.ops()} == expected.held
        views.append(incremental(box))
    assert len({view.digest() for view in views}) == 1
    one = world.boxes[0]
    assert fold(world.fleet.genesis, one.ops()).digest() == views[0].digest()
    says_what_the_rules_say(views[0], expected)
    return views[0]


@QUICK
@given(moves(MOVES), st.integers(2, 6))
def test_all_boxes_agree_on_what_the_rules_say(made: list[Move], replicas: int) -> None:
    world = World(replicas)
    world.play(made)
    agree(world)
