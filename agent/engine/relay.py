"""From a job that has been admitted to whoever asked for it: its turn, its events, and its end in any case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from agent.engine.external.workload import ExternalJob
from agent.engine.job import Event, QueuedJob
from agent.errors import OverloadedError
from fleet.net.messages import Finished, InferRequest, Started

#: Characters of a model's name in what a job is refused with: what comes after it is cut where others tell of it.
_MAX_NAME: Final = 64


class Identified(Protocol):
    """What is known of a model's content."""

    @property
    def hash(self) -> str:
        """Its content hash."""


class Busy(Protocol):
    """A model with jobs, in a process of this box or in a server beside it."""

    name: str

    @property
    def identity(self) -> Identified:
        """What it is."""

    @property
    def running(self) -> int:
        """Jobs that it runs."""

    @property
    def queued(self) -> int:
        """Jobs that wait for it."""

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find room."""


async def relay(
    model: Busy,
    job: QueuedJob | ExternalJob,
    release: Callable[[], None],
    emit: Callable[[Event], Awaitable[None]],
) -> None:
    """Hand on the events of a job until its Finished, and let go of it in any case.

    Raises OverloadedError where its turn did not come in the time that it may wait, and what ends the job. Vectors may
    take long to come, so Started is handed on when the process has the texts, and not with the first of them.
    Cancel-safe.
    """
    try:
        if not await job.turn():
            raise _not_its_turn(model, job.request)
        early = isinstance(job, QueuedJob) and job.began > 0 and job.request.kind == "embedding"
        if early:
            await emit(Started(model=model.name, hash=model.identity.hash, prompt_tokens=0))
        while True:
            event = await job.next()
            if early and isinstance(event, Started):
                continue
            await emit(event)
            if isinstance(event, Finished):
                return
    finally:
        job.close()
        release()


def _not_its_turn(model: Busy, request: InferRequest) -> OverloadedError:
    """What a job is told that has waited in vain: the box is busy, and nothing has failed."""
    waited, after = (request.begin_ms or 0) / 1000, model.retry_after
    return OverloadedError(
        f"its turn at {model.name[:_MAX_NAME]} did not come within {waited:g} s ({model.running} jobs run,"
        f" {model.queued} wait); send it again in {after} s, or raise timeouts.first_token to wait longer",
        details={"queued": model.queued, "running": model.running},
        retry_after=after,
    )
