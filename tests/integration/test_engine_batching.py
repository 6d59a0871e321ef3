"""Many jobs at once on the real model: they share steps and cells, yield, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import structlog
import structlog.testing
import trio

from agent.engine.protocol import Statistics
from agent.errors import BadRequestError
from fleet.net.messages import Delta, InferRequest
from tests.harness import peer_id_of
from tests.integration.test_engine import Answer, Box, box, completion

pytestmark = pytest.mark.model

WORDS = ("lighthouse", "harbour", "winter", "engine", "orchard", "library", "bakery", "compass")
LONG = "The history of the lighthouse keepers of the northern coast is long and full of storms. " * 12


async def stats(here: Box) -> Statistics:
    return await here.pool.stats(here.held.hash)


async def nothing_left(here: Box) -> Statistics:
    """What is in the engine once all is over: only sequences that are kept."""
    await here.until(lambda held: held.running == held.queued == 0)
    found = await stats(here)
    assert (found.running, found.waiting) == (0, 0)
    assert found.cells_used == found.cells_kept
    return found


async def all_at_once(here: Box, requests: list[InferRequest]) -> list[Answer]:
    answers: dict[int, Answer] = {}

    async def one(index: int, request: InferRequest) -> None:
        answers[index] = await here.run(request)

    async with trio.open_nursery() as nursery:
        for index, request in enumerate(requests):
            nursery.start_soon(one, index, request)
    return [answers[index] for index in range(len(requests))]


def of(asker: str, request: InferRequest, **fields: Any) -> InferRequest:
    return request.model_copy(update={"route": (peer_id_of(asker),), **fields})


def test_jobs_join_and_leave_while_others_run_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=512) as here:
            requests = [
                completion(f"A short story about a {word}:", max_tokens=8 + 5 * index)
                for index, word in enumerate(WORDS)
            ]
            answers = await all_at_once(here, requests)
            assert [answer.finished.completion_tokens for answer in answers] == [8 + 5 * n for n in range(8)]
            assert len({answer.text for answer in answers}) == 8
            found = await nothing_left(here)
            assert found.tokens == sum(8 + 5 * n for n in range(8))
            assert found.steps < found.tokens, "steps were shared"

    trio.run(main)


def test_b46_eight_at_once_share_their_steps_and_each_begins_before_the_first_ends(tmp_path: Path) -> None:
    """How much faster that is than one after another is a figure of `make bench-engine`."""

    async def main() -> None:
        bias = tuple((token, -100.0) for token in (0, 2))  # no end of text
        async with box(tmp_path, slots=8, context_tokens=256) as here:
            await here.until(lambda held: held.state == "loaded")
            before = (await stats(here)).steps
            begun: set[int] = set()
            begun_at_first_end: list[int] = []

            async def one(index: int) -> None:
                async def note(event: object) -> None:
                    if isinstance(event, Delta):
                        begun.add(index)

                request = completion(f"A story of the {WORDS[index]}:", max_tokens=48, logit_bias=bias)
                answer = await here.run(request, note)
                begun_at_first_end.append(len(begun))
                assert answer.finished.completion_tokens == 48

            async with trio.open_nursery() as nursery:
                for index in range(8):
                    nursery.start_soon(one, index)
            assert begun_at_first_end[0] == 8
            steps = (await nothing_left(here)).steps - before
            assert steps <= 2 * 48, f"{steps} steps for 8 answers of 48 tokens"

    trio.run(main)


def test_a_long_prompt_does_not_hold_up_who_is_being_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=2, context_tokens=2048) as here:
            between = 0
            begun = trio.Event()

            async def count(event: object) -> None:
                nonlocal between
                between += isinstance(event, Delta)
                begun.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.run, completion("Once upon a time", max_tokens=None), count)
                await begun.wait()
                before = between
                await here.run(completion("word " * 800, max_tokens=1))
                assert between - before >= 5, "tokens came while the long prompt was read"
                nursery.cancel_scope.cancel()
            await nothing_left(here)

    trio.run(main)


def test_when_cells_run_out_the_youngest_yields_and_everybody_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=6, context_tokens=192) as here:
            bias = tuple((token, -100.0) for token in (0, 2))  # no end of text
            requests = [completion(f"List of every {word}:", max_tokens=150, logit_bias=bias) for word in WORDS[:6]]
            await here.until(lambda held: held.state == "loaded")
            before = await stats(here)
            assert before.cells < 6 * 150
            answers = await all_at_once(here, requests)
            assert [answer.finished.completion_tokens for answer in answers] == [150] * 6
            assert all(answer.finished.reason == "length" for answer in answers)
            found = await nothing_left(here)
            assert found.yielded > 0

    trio.run(main)


def test_a_beginning_is_reused_for_its_owner_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=2, context_tokens=1024) as here:
            first = await here.run(of("pos-1", completion(LONG, max_tokens=4)))
            prompt = first.finished.prompt_tokens
            assert (await stats(here)).reused == 0
            await here.run(of("pos-2", completion(LONG, max_tokens=4)))
            await here.run(completion(LONG, max_tokens=4))
            assert (await stats(here)).reused == 0, "nobody learns what another asked"
            await here.run(of("pos-1", completion(LONG + "And then", max_tokens=4)))
            assert prompt - 2 <= (await stats(here)).reused <= prompt
            await nothing_left(here)

    trio.run(main)


def test_a_prompt_that_several_share_is_read_once_though_they_come_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=2048) as here:
            shared = LONG * 3
            requests = [of("pos-1", completion(f"{shared}{word}", max_tokens=4)) for word in WORDS[:3]]
            answers = await all_at_once(here, [*requests, of("pos-2", completion(shared, max_tokens=4))])
            prompt = answers[3].finished.prompt_tokens
            # By two, of three; and not by another owner.
            assert 2 * (prompt - 40) <= (before := (await stats(here)).reused) <= 2 * prompt
            short = completion("What is a lighthouse for, and who keeps it through the winter?", max_tokens=4)
            answers = await all_at_once(here, [of("pos-3", short)] * 4)
            prompt = answers[0].finished.prompt_tokens
            assert prompt < 32, "as the questions of most chats"
            assert (await stats(here)).reused - before == 3 * (prompt - 1)
            await nothing_left(here)

    trio.run(main)


def test_what_is_kept_makes_way_for_who_runs_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=1024) as here:
            asked = {asker: f"{asker} asks. {LONG}" for asker in ("pos-1", "pos-2", "pos-3")}
            prompts = {}
            for asker, prompt in asked.items():
                answer = await here.run(of(asker, completion(prompt, max_tokens=4)))
                prompts[asker] = answer.finished.prompt_tokens
            beside: list[int] = []

            async def look(event: object) -> None:
                beside.append((await stats(here)).cells_kept)

            await here.run(completion("List of every word:", max_tokens=4), look)
            assert beside[0] <= 256 < prompts["pos-1"] + prompts["pos-2"]
            for turn, (asker, prompt) in enumerate(asked.items(), 1):
                await here.run(of(asker, completion(prompt + "And then", max_tokens=4)))
                reused = (await stats(here)).reused
                assert sum(list(prompts.values())[:turn]) - 2 * turn <= reused <= sum(prompts.values())
            await nothing_left(here)

    trio.run(main)


def test_a_conversation_with_a_name_goes_on_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=2, context_tokens=1024) as here:
            first = await here.run(completion(LONG, max_tokens=8).model_copy(update={"session": "talk"}))
            files = tmp_path / "state" / "sessions"
            await here.until(lambda held: any(files.rglob("*.kv")))
        async with box(tmp_path, slots=2, context_tokens=1024) as here:
            turn = completion(LONG + first.text + " And then", max_tokens=4)
            await here.run(of("pos-1", turn, session="talk"))
            assert (await stats(here)).reused == 0, "it is of another owner"
            await here.run(turn.model_copy(update={"session": "talk"}))
            assert (await stats(here)).reused >= first.finished.prompt_tokens
            await nothing_left(here)
        async with box(tmp_path, slots=2, context_tokens=1024, session_cache_mib=0) as here:
            await here.run(turn.model_copy(update={"session": "talk"}))
            assert (await stats(here)).reused == 0

    trio.run(main)


def test_whoever_cancels_in_company_leaves_the_others_their_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=512) as here:
            async with trio.open_nursery() as nursery:
                done = trio.Event()

                async def nuisance() -> None:
                    while not done.is_set():
                        with trio.CancelScope() as scope:

                            async def hang_up(event: object, scope: trio.CancelScope = scope) -> None:
                                if isinstance(event, Delta):
                                    scope.cancel()

                            await here.run(of("pos-2", completion("Tell me everything about storms.")), hang_up)

                nursery.start_soon(nuisance)
                answer = await here.run(completion("Once upon a time there was", max_tokens=60))
                done.set()
            assert answer.finished.completion_tokens == 60
            await nothing_left(here)

    trio.run(main)


def test_who_waits_on_a_slow_box_is_answered_though_others_give_up_before_him(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=1024, threads=1) as here:
            answers = []

            async def wait() -> None:
                answers.append(await here.run(of("pos-1", completion("sail " * 120, max_tokens=2))))

            async def give_up(patience: float) -> None:
                with trio.move_on_after(patience):
                    await here.run(of("pos-2", completion(f"{patience} " + "rope " * 900, max_tokens=2)))

            async def slow_down(pid: int) -> None:
                """Let the process have a quarter of its time, as if others were at the core, until the last cancel."""
                try:
                    while True:
                        os.kill(pid, signal.SIGSTOP)
                        await trio.sleep(0.06)
                        os.kill(pid, signal.SIGCONT)
                        await trio.sleep(0.02)
                finally:
                    os.kill(pid, signal.SIGCONT)

            await here.until(lambda held: held.state == "loaded")
            pid = here.held.pid
            assert pid is not None
            with structlog.testing.capture_logs() as lines:
                async with trio.open_nursery() as nursery, trio.open_nursery() as slow:
                    slow.start_soon(slow_down, pid)
                    nursery.start_soon(wait)
                    for patience in (0.4, 0.7, 1.0):
                        nursery.start_soon(give_up, patience)
                    await here.until(lambda held: held.running == 4)
                    await here.until(lambda held: held.running <= 1)
                    slow.cancel_scope.cancel()
            assert [answer.finished.completion_tokens for answer in answers] == [2]
            assert here.held.pid == pid
            assert "engine.child_hung" not in [line["event"] for line in lines]
            await nothing_left(here)

    trio.run(main)


def test_a_grammar_that_cannot_be_used_harms_nobody_in_the_same_step(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, slots=4, context_tokens=512) as here:
            bad = completion("x").model_copy(update={"output": "grammar", "output_text": "root ::= root | "})
            good = completion("The digits are ", max_tokens=12).model_copy(
                update={"output": "grammar", "output_text": "root ::= [0-9]+"}
            )
            answers: list[Answer] = []

            async def refused() -> None:
                with pytest.raises(BadRequestError):
                    await here.run(bad)

            async def run(request: InferRequest) -> None:
                answers.append(await here.run(request))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, completion("Once upon a time", max_tokens=30))
                nursery.start_soon(refused)
                nursery.start_soon(run, good)
            texts = [answer.text for answer in answers]
            assert sum(text.isdigit() for text in texts) == 1
            await nothing_left(here)

    trio.run(main)
