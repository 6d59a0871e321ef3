"""What is parked beside the cells: how much, for whom, and what goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.parking import MOST, Found, Parked, Parking


def parked(owner: str, tokens: list[int], size: int = 10, session: str = "", *, unsaved: bool = False) -> Parked:
    return Parked(owner, tokens, session, bytes(size), unsaved)


def parking(budget: int = 30) -> tuple[Parking, list[Parked]]:
    gone: list[Parked] = []
    return Parking(budget, gone.append), gone


def find(here: Parking, tokens: list[int], owner: str = "me", session: str = "", least: int = 0) -> Found | None:
    return here.find(tokens, owner, session, longer_than=least, whole_only=False)


def test_what_was_used_longest_ago_makes_room() -> None:
    here, gone = parking()
    one, two, three, four = (parked("me", [number, 1, 2, 3]) for number in range(4))
    for each in (one, two, three):
        here.put(each)
    found = find(here, [0, 1, 9, 9])
    assert found == Found(one, 2, whole=True)
    assert find(here, [1, 9, 9]) == Found(two, 1, whole=False), "little of it is alike: it is used, and stays"
    here.put(four)
    assert gone == [one]
    here.put(parked("me", [7], 20))
    assert (gone, here.bytes, len(here)) == ([one, three, two], 30, 2)


def test_only_what_fits_is_taken() -> None:
    here, _ = parking()
    assert here.takes(30)
    assert not here.takes(31)
    assert not parking(0)[0].takes(1)


def test_a_conversation_is_parked_once_and_its_older_turn_is_not_told_of_as_gone() -> None:
    here, gone = parking()
    here.put(parked("me", [1, 2], session="talk", unsaved=True))
    here.put(parked("you", [1, 2], session="talk"))
    newer = parked("me", [1, 2, 3], session="talk", unsaved=True)
    here.put(newer)
    assert [one.owner for one in here.all()] == ["you", "me"]
    here.saved(newer)
    assert [one.unsaved for one in here.all()] == [False, False]
    assert (gone, here.bytes) == ([], 20)


def test_nobody_begins_with_what_another_asked_and_no_conversation_is_taken_for_a_template() -> None:
    here, _ = parking()
    here.put(parked("you", [1, 2, 3]))
    assert find(here, [1, 2, 3, 4]) is None
    here.put(parked("me", [1, 2, 3], session="talk"))
    assert find(here, [1, 2, 3, 4], session="other") == Found(here.all()[-1], 3, whole=False)
    assert find(here, [1, 2, 3, 4], session="talk") == Found(here.all()[-1], 3, whole=True)
    assert find(here, [1, 2, 3, 4], session="talk", least=3) is None, "what is in cells is as good"


SEQUENCE = st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 40))


@given(st.lists(SEQUENCE, max_size=120))
def test_it_never_holds_more_than_its_budget_and_tells_of_all_that_goes(
    sequences: list[tuple[str, list[int], int]],
) -> None:
    here, gone = parking(100)
    put = [parked(*each) for each in sequences]
    for each in put:
        here.put(each)
        assert here.bytes == sum(len(one.state) for one in here.all()) <= 100
        assert len(here) <= MOST
    assert [*gone, *here.all()] == put, "in the order in which they came"
