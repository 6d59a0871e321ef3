"""One job of a broker's client while it runs: its events become deltas, and at last the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from agent.errors import BadRequestError, ModelNotFoundError, NoCapablePeerError
from agent.jobs.job import JobEvent, Resumed, Routed
from agent.mqtt import replies
from agent.mqtt.around import Run
from agent.mqtt.replies import Answer
from agent.mqtt.work import Work
from fleet.net.messages import Delta, Embedded, Finished

#: Seconds after a start in which jobs of before are tried again where no box can run them, and between two tries.
SETTLE: Final = 30.0
_SETTLE_LOOK: Final = 1.0


async def run_work(
    work: Work, left_ms: int, run: Run, *, settled: float, say_delta: Callable[[Answer, str], None]
) -> bytes:
    """Run a job that has `left_ms` left, once its client was told that it is accepted where deltas are published with
    `say_delta`; returns its result. One of an earlier process is tried again until `settled`.

    Raises what `run` raises, and BadRequestError for an answer that fits into no message. Cancelling cancels the job.
    """
    row = work.row
    began = trio.current_time()
    answer = work.answer = Answer(began)
    job = work.asked.to_run(f"mqtt-{row.id}", row.model, left_ms, row.traceparent)

    async def emit(event: JobEvent) -> None:
        match event:
            case Routed() | Resumed():
                answer.route(event)
            case Delta():
                answer.first_at = answer.first_at or trio.current_time()
                answer.texts.append(event.text)
                if work.asked.stream and event.text:
                    await work.accepted.wait()
                    say_delta(answer, event.text)
            case Embedded():
                answer.vectors.append(event)
                if answer.bulky:
                    raise BadRequestError("input.texts: their vectors do not fit into a message; send fewer texts")
            case Finished():
                answer.finished = event

    while True:
        try:
            await run(job, emit)
            break
        except (NoCapablePeerError, ModelNotFoundError):
            # A box that has just started may not have heard of the others yet.
            if not work.replayed or answer.routed is not None or trio.current_time() >= settled:
                raise
            await trio.sleep(_SETTLE_LOOK)
    result = answer.result(row.id, work.asked.kind, trio.current_time())
    if result is None:
        raise BadRequestError(f"the answer is larger than {replies.MAX_RESULT} bytes; ask for fewer tokens or texts")
    return result
