"""What a box does next: one action, the most urgent first, and nothing that would lose a copy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.reconcile.plan import (
    Action,
    Actual,
    Adopt,
    Check,
    Copy,
    Desired,
    Drop,
    Fetch,
    Fetching,
    Serve,
    Stop,
    Want,
    Withdraw,
    obstacle,
    plan,
)
from tests.property import budget

MB = 10**6
GB = 10**9
ROOM: dict[str, Any] = {"free": 100 * GB, "memory": 100 * GB}


def want(name: str, size: int = 100 * MB, **more: Any) -> Want:
    return Want(name, name, size, **more)


def wish(*wants: Want, known: str = "") -> Desired:
    return Desired(wants, frozenset(known) | {one.hash for one in wants})


@pytest.mark.parametrize(
    ("desired", "actual", "expected"),
    [
        (wish(), Actual(), None),
        (wish(want("a")), Actual(**ROOM), Fetch("a")),
        (wish(want("a")), Actual(copies=(Copy("a", MB, served=True),), **ROOM), None),
        (wish(want("a")), Actual(own=frozenset("a"), **ROOM), None),
        # the urgent one first, then what somebody pulls, then what is placed
        (wish(want("a"), want("b", reason="pulled"), want("c", urgent=True)), Actual(**ROOM), Fetch("c")),
        (wish(want("a"), want("b", reason="pulled")), Actual(**ROOM), Fetch("b")),
        # one at a time, but for those that wait for somebody
        (wish(want("a"), want("b")), Actual(fetching=(Fetching("a"),), **ROOM), None),
        (wish(want("a"), want("b")), Actual(fetching=(Fetching("a", moving=False),), **ROOM), Fetch("b")),
        # a box without an engine keeps models for others
        (wish(want("a")), Actual(copies=(Copy("a", MB),), free=GB), None),
        (wish(want("a")), Actual(free=GB), Fetch("a")),
        # a file of the box's own is given to others too, where that costs nothing
        (wish(known="a"), Actual(own=frozenset("ab"), linkable=frozenset("ab"), **ROOM), Adopt("a")),
        (wish(known="a"), Actual(copies=(Copy("a", MB),), own=frozenset("a"), linkable=frozenset("a"), **ROOM), None),
        # what is fetched and no longer wanted, or not now
        (wish(), Actual(fetching=(Fetching("a"),), **ROOM), Stop("a", "it is not wanted here any more")),
        (wish(want("a")), Actual(fetching=(Fetching("a"),), closed="by night", **ROOM), Stop("a", "by night")),
        (wish(want("a")), Actual(closed="by night", **ROOM), None),
        # a whole copy is served, before anything is fetched; one that nobody vouches for never
        (wish(want("b"), known="a"), Actual(copies=(Copy("a", MB),), **ROOM), Serve("a")),
        (wish(), Actual(copies=(Copy("a", MB),), **ROOM), None),
        (
            wish(want("b")),
            Actual(copies=(Copy("a", MB, served=True),), **ROOM),
            Withdraw("a", "no admin of the fleet vouches for it any more"),
        ),
        (wish(want("a")), Actual(broken=frozenset("a"), **ROOM), Withdraw("a", "its file is damaged")),
        (wish(want("a")), Actual(copies=(Copy("a", MB, served=True),), suspect=frozenset("a"), **ROOM), Check("a")),
        (wish(want("a")), Actual(suspect=frozenset("a"), own=frozenset("a"), failed={"a": "so"}, **ROOM), None),
        # the budgets
        (wish(want("a", 2 * GB)), Actual(free=GB, memory=100 * GB), None),
        (wish(want("a", 2 * GB)), Actual(free=GB, memory=100 * GB, parts={"a": GB}), Fetch("a")),
        (wish(want("a", 2 * GB)), Actual(free=100 * GB, memory=2 * GB), None),
        (wish(want("a", 2 * GB), want("b", MB)), Actual(free=GB, memory=100 * GB), Fetch("b")),
        (wish(want("a")), Actual(failed={"a": "it failed"}, **ROOM), None),
        # what nobody wants makes room, the largest first; never the last copy, nor what is pinned or in use
        (
            wish(want("a", 2 * GB)),
            Actual(
                copies=(Copy("b", GB, True, 1, 120.0), Copy("c", 2 * GB, True, 1, 120.0)), free=GB // 2, memory=100 * GB
            ),
            Withdraw("b", "no admin of the fleet vouches for it any more"),
        ),
        (
            wish(want("a", 2 * GB), known="bc"),
            Actual(
                copies=(Copy("b", GB, True, 1, 120.0), Copy("c", 2 * GB, True, 1, 120.0)), free=GB // 2, memory=100 * GB
            ),
            Drop("c", "a needs the room"),
        ),
        *(
            (
                wish(want("a", 2 * GB), known="c"),
                Actual(copies=(Copy("c", 9 * GB, True, **kept),), free=0, memory=100 * GB),
                None,
            )
            for kept in (
                {"others": 0, "unwanted_for": 120.0},
                {"others": 1, "unwanted_for": 5.0},
                {"others": 1, "unwanted_for": None},
                {"others": 1, "unwanted_for": 120.0, "busy": True},
                {"others": 1, "unwanted_for": 120.0, "pinned": True},
            )
        ),
        # and goes after a while anyway
        (
            wish(known="c"),
            Actual(copies=(Copy("c", GB, True, 1, 3600.0),), **ROOM),
            Drop("c", "it is not wanted here any more, and others hold it"),
        ),
        (wish(known="c"), Actual(copies=(Copy("c", GB, True, 1, 3599.0),), **ROOM), None),
    ],
)  # fmt: skip
def test_the_next_action(desired: Desired, actual: Actual, expected: Action | None) -> None:
    assert plan(desired, actual) == expected


def test_why_a_model_is_not_fetched_names_figures() -> None:
    assert obstacle(want("a", 2 * GB), Actual(free=GB, memory=100 * GB)).startswith("the disk is short of 1,000 MB")
    assert "needs about 2,384 MB of memory" in obstacle(want("a", 2 * GB), Actual(free=9 * GB, memory=GB))
    assert obstacle(want("a"), Actual(**ROOM)) == ""


NAMES = st.sampled_from("abcd")
COPIES = st.builds(
    Copy, NAMES, st.integers(1, 10), st.booleans(), st.integers(0, 2), st.none() | st.just(0.0) | st.just(9e9),
    st.booleans(), st.booleans(),
)  # fmt: skip


@given(
    st.lists(st.builds(want, NAMES, st.integers(1, 10), urgent=st.booleans()), unique_by=lambda one: one.hash),
    st.lists(COPIES, unique_by=lambda copy: copy.hash),
    st.integers(0, 20),
    st.sets(NAMES),
)
@budget(300)
def test_it_comes_to_rest_and_never_deletes_a_last_copy_or_overfills_the_disk(
    wants: list[Want], copies: list[Copy], free: int, known: set[str]
) -> None:
    desired = Desired(tuple(wants), frozenset(known))
    here = {copy.hash: copy for copy in copies}
    sizes = {one.hash: one.size for one in wants}
    wanted = set(sizes)
    here = {name: _wanted_or(copy, name in wanted) for name, copy in here.items()}
    for _ in range(40):
        action = plan(desired, Actual(copies=tuple(here.values()), free=free, memory=1 << 40))
        match action:
            case None:
                break
            case Fetch(name):
                free -= sizes[name]
                here[name] = Copy(name, sizes[name])
            case Serve(name):
                here[name] = Copy(name, here[name].size, True, here[name].others, here[name].unwanted_for)
            case Withdraw(name):
                here[name] = Copy(name, here[name].size, False, here[name].others, here[name].unwanted_for)
            case Drop(name):
                assert here[name].others > 0
                assert name not in wanted
                free += here.pop(name).size
        assert free >= 0
    else:
        raise AssertionError("it never comes to rest")


def _wanted_or(copy: Copy, wanted: bool) -> Copy:
    since = None if wanted else copy.unwanted_for
    return Copy(copy.hash, copy.size, copy.served, copy.others, since, copy.busy, copy.pinned)
