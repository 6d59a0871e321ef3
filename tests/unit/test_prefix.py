"""Which sequence a new one begins with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.prefix import Beginning, Kept, Shelf, best_beginning, common

TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(TOKENS, TOKENS)
def test_what_is_common_is_the_longest_common_beginning(one: list[int], other: list[int]) -> None:
    length = common(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def best(tokens: list[int], *kept: Kept, running: tuple[tuple[int, str, list[int]], ...] = (), whole: bool = False):  # type: ignore[no-untyped-def]
    return best_beginning(tokens, "me", kept, running, whole_only=whole)


def test_the_longest_beginning_is_taken_and_the_last_token_is_decoded_again() -> None:
    short, long = Kept(1, "me", [1, 2]), Kept(2, "me", [1, 2, 3, 4])
    assert best([1, 2, 3, 9], short, long) == Beginning(2, 3, long)
    assert best([1, 2, 3, 4], short, long) == Beginning(2, 3, long)
    assert best([7], short, long) is None
    assert best([1], short, long) is None


def test_what_another_owner_asked_for_is_never_used() -> None:
    theirs = Kept(1, "them", [1, 2, 3])
    assert best([1, 2, 3, 4], theirs, running=((2, "them", [1, 2, 3]),)) is None


def test_one_that_is_over_is_preferred_to_one_that_runs() -> None:
    over = Kept(1, "me", [1, 2, 3])
    running = (2, "me", [1, 2, 3])
    assert best([1, 2, 3, 4], over, running=(running,)) == Beginning(1, 3, over)
    assert best([1, 2, 3, 4], running=(running,)) == Beginning(2, 3)


def test_a_conversation_is_not_given_up_for_the_few_tokens_that_all_chats_begin_with() -> None:
    long = Kept(1, "me", [1, 2, 3, 4, 5, 6])
    assert best([1, 2, 9, 9], long) == Beginning(1, 2), "shared, and kept"
    assert best([1, 2, 3, 9], long) == Beginning(1, 3, long), "half of it is most of it"


def test_a_conversation_with_a_name_is_taken_over_by_itself_alone() -> None:
    named = Kept(1, "me", [1, 2, 3], "c1")
    asked = {session: best_beginning([1, 2, 3, 4], "me", [named], (), whole_only=False, session=session)
             for session in ("", "c2", "c1")}  # fmt: skip
    assert asked == {"": Beginning(1, 3), "c2": Beginning(1, 3), "c1": Beginning(1, 3, named)}


def test_a_window_leaves_only_what_is_continued_whole() -> None:
    over = Kept(1, "me", [1, 2, 3])
    assert best([1, 2, 3, 4], over, whole=True) == Beginning(1, 3, over)
    assert best([1, 2, 9, 4], over, whole=True) is None
    assert best([1, 2, 3], over, whole=True) is None, "its last token would have to be cut off"
    assert best([1, 2, 3, 4], running=((2, "me", [1, 2, 3]),), whole=True) is None


def test_the_shelf_gives_up_what_was_used_longest_ago() -> None:
    shelf = Shelf()
    one, two = Kept(1, "me", [1]), Kept(2, "me", [2])
    shelf.put(one)
    shelf.put(two)
    assert shelf.oldest() is one
    assert shelf.oldest(but=1) is two
    assert shelf.tokens == 2
    shelf.put(Kept(1, "me", [1, 1]))
    assert shelf.oldest() is two
    assert shelf.take(2) is two
    assert shelf.take(2) is None
    assert len(shelf) == 1
