"""Whose texts are read next, in steps of which size, and that nobody's cancels keep another from the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from agent.engine.inbox import Inbox
from agent.engine.pooling import Pooler, Pooling
from agent.engine.protocol import Done, Embed, Up, Vectors
from agent.engine.step_size import StepSize
from agent.errors import AgentError, EngineError

pytest.importorskip("llama_cpp")

from agent.engine.embedding import Embedder, Texts, chosen
from agent.engine.embedding_context import AbortedError


class Pages:
    """Reads texts in steps of some tokens, or whole; `within` is called in every step, as llama.cpp asks meanwhile."""

    def __init__(self, abort: Callable[[], bool], *, whole: bool) -> None:
        self.abort = abort
        self.whole = whole
        self.steps: list[int] = []
        self.within: Callable[[], None] = lambda: None
        self._texts: Sequence[Sequence[int]] = ()
        self._left = 0

    def begin(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        self._texts, self._left = texts, sum(map(len, texts))

    def advance(self, most: int) -> tuple[int, np.ndarray | None]:
        count = self._left if self.whole else min(most, self._left)
        self.steps.append(count)
        self.within()
        if self.abort():
            raise AbortedError
        self._left -= count
        return count, None if self._left else np.ones((len(self._texts), 2))


class Desk:
    """An embedder with what it has said."""

    def __init__(self, *, whole: bool = False) -> None:
        self.said: list[Up] = []
        self.failed: list[int] = []
        self.waiting: list[Texts] = []
        self.inbox: Inbox[Texts] = Inbox(lambda: None, lambda: None)
        self.whole = whole
        self.pages: Pages
        self.embedder = Embedder(self.inbox, self.said.append, self._reader, room=2048, hear=self._hear)

    def _reader(self, abort: Callable[[], bool]) -> Pages:
        self.pages = Pages(abort, whole=self.whole)
        return self.pages

    def _hear(self) -> None:
        for texts in self.inbox.take(wait=False):
            self.embedder.add(texts)

    def ask(self, id: int, *lengths: int, taken: bool = True) -> None:
        self.inbox.announce(id)
        self.inbox.put(Texts(Embed(id, ("x",) * len(lengths)), [[7] * length for length in lengths]))
        if taken:
            self._hear()

    def step(self, *, alone: bool = True) -> None:
        self.embedder.step(lambda id, error: self.failed.append(id), alone=alone)

    def run(self, limit: int = 1000) -> None:
        while self.embedder.busy:
            limit -= 1
            assert limit, "it never ends"
            self.step()

    def ends(self) -> list[tuple[int, str]]:
        return [(one.id, one.reason) for one in self.said if isinstance(one, Done)]


def test_a_long_text_is_many_steps_and_one_vector() -> None:
    desk = Desk()
    desk.ask(1, 2048)
    desk.step(alone=False)
    assert desk.pages.steps == [16], "nobody knows yet how long one takes"
    assert not desk.said
    desk.run()
    assert sum(desk.pages.steps) == 2048
    (vectors,) = (one for one in desk.said if isinstance(one, Vectors))
    assert (vectors.first, vectors.dimensions, len(vectors.data)) == (0, 2, 8)
    assert desk.ends() == [(1, "stop")]


def test_a_step_beside_a_chat_is_shorter_on_a_slow_box(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, now = Desk(), 0.0
    monkeypatch.setattr("agent.engine.embedding.time.perf_counter", lambda: now)

    def slow() -> None:
        nonlocal now
        now += desk.pages.steps[-1] / 500  # seconds a token

    desk.ask(1, 2048)
    desk.step(alone=False)  # makes the reader
    desk.pages.within = slow
    for alone in (False, False, False, False, True, True, False):
        desk.step(alone=alone)
    assert desk.pages.steps == [16, 32, 64, 32, 32, 128, 128, 32]


def test_small_steps_that_cost_what_large_ones_do_are_not_worth_it() -> None:
    def sizes(overhead: float, token: float) -> list[int]:
        steps, found = StepSize(), []
        for _ in range(60):
            found.append(steps.next(0.12))
            steps.note(found[-1], overhead + token * found[-1])
        return found

    assert sizes(0.0, 0.0001)[-1] == 128
    assert sizes(0.0, 0.002)[4:] == [32] * 56
    assert sizes(0.5, 0.0)[-1] == 128, "other programs keep the cores"
    assert sizes(0.3, 0.002)[-1] == 64
    assert sizes(0.0, 0.05)[3:] == [16] * 57


def test_what_was_too_slow_once_is_tried_again() -> None:
    steps = StepSize()
    for _ in range(10):
        size = steps.next(0.12)
        steps.note(size, 1.0 if size == 32 else 0.01)
    assert steps.next(0.12) == 16
    found = []
    for _ in range(70):
        found.append(steps.next(0.12))
        steps.note(found[-1], 0.01)
    assert found[-1] == 128


def test_requests_take_turns_by_what_is_read_together() -> None:
    desk = Desk(whole=True)
    desk.ask(1, *[1000] * 5)
    desk.ask(2, 10)
    desk.run()
    order = [(one.id, one.first) for one in desk.said if isinstance(one, Vectors)]
    assert order == [(1, 0), (2, 0), (1, 2), (1, 4)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_cancels_of_others_do_not_keep_a_request_from_its_end(whole: bool, taken: bool) -> None:
    desk, next_id = Desk(whole=whole), 100
    desk.ask(1, *[2000] * 3)
    desk.step()

    def come_and_go() -> None:
        nonlocal next_id
        next_id += 1
        desk.ask(next_id, 2000, taken=taken)
        desk.inbox.cancel(next_id)

    desk.pages.within = come_and_go
    desk.run(300)
    assert (1, "stop") in desk.ends()
    if whole:
        assert desk.pages.steps == [2000] * 3, "nothing was read twice"
        told = [one.id for one in desk.said if isinstance(one, Done | Vectors)]
        assert told.index(101) < [at for at, id in enumerate(told) if id == 1][1], "let go within the step"


@pytest.mark.parametrize("whole", [False, True])
def test_its_own_cancel_ends_a_request_at_once(whole: bool) -> None:
    desk = Desk(whole=whole)
    desk.ask(1, *[2000] * 3)
    desk.ask(2, 5)
    desk.step()
    desk.pages.within = lambda: desk.inbox.cancel(1)
    desk.step()
    desk.step()
    desk.run()
    assert set(desk.ends()) == {(1, "cancelled"), (2, "stop")}
    assert not any(isinstance(one, Vectors) and one.id == 1 for one in desk.said[1:])


def test_an_error_ends_its_request_alone() -> None:
    desk = Desk()
    desk.ask(1, 2000)
    desk.ask(2, 5)
    desk.step()

    def fail() -> None:
        desk.pages.within = lambda: None
        raise EngineError("llama.cpp failed to embed (code -3)")

    desk.pages.within = fail
    desk.run()
    assert desk.failed == [1]
    assert desk.ends() == [(2, "stop")]


@pytest.mark.parametrize(
    ("lengths", "count"), [([5], 1), ([2048, 1], 1), ([1024, 1024, 1], 2), ([1] * 40, 16), ([3000], 1)]
)
def test_texts_are_read_together_as_far_as_they_fit(lengths: list[int], count: int) -> None:
    assert len(chosen([[7] * length for length in lengths], 2048)) == count


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_pooling_is_the_same_however_the_tokens_come(step: int) -> None:
    lengths, rows = [3, 1, 4], np.random.default_rng(1).normal(size=(8, 5))
    texts = [rows[:3], rows[3:4], rows[4:]]
    wanted: dict[Pooling, list[np.ndarray]] = {
        "": [text.mean(0) for text in texts],
        "mean": [text.mean(0) for text in texts],
        "cls": [text[0] for text in texts],
        "last": [text[-1] for text in texts],
    }
    for pooling, vectors in wanted.items():
        pooler = Pooler(lengths, pooling, 5)
        for start in range(0, 8, step):
            pooler.add(start, rows[start : start + step])
        expected = [vector / np.linalg.norm(vector) for vector in vectors]
        assert pooler.vectors() == pytest.approx(np.array(expected))


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_vector_without_a_direction_is_an_error(bad: float) -> None:
    pooler = Pooler([1, 1], "mean", 3)
    pooler.add(0, np.array([[1.0, 0, 0], [bad, 0, 0]]))
    with pytest.raises(AgentError, match="without a direction"):
        pooler.vectors()
