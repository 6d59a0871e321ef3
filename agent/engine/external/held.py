"""One model of a server, with what `agent.engine.holding.Holding` offers of one that this box runs itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.engine.external.dialect import body_of
from agent.engine.external.listing import Listed
from agent.engine.external.workload import ExternalJob
from agent.engine.fair_queue import LOCAL
from agent.engine.holding import State
from agent.engine.identify import Identity
from agent.engine.job import asker_of
from agent.engine.rates import MovingRate
from agent.errors import ModelLoadError, NoLocalModelError
from fleet.net.messages import InferRequest

if TYPE_CHECKING:
    from agent.engine.external.engine import ExternalEngine

#: Tokens per second that are believed; what a box says of itself may not be more (`ModelPresence`).
_MAX_DECODE: Final = 1e5
_MAX_PREFILL: Final = 1e6


class ExternalModel:
    """A model that a server has, or had: one that is no longer listed takes no jobs.

    All methods return at once and are called from the thread of the event loop.
    """

    def __init__(self, engine: ExternalEngine, listed: Listed, hash: str, context_tokens: int) -> None:
        self.engine = engine
        self.name = listed.name
        self.identity = Identity(None, hash)
        self.listed = listed
        self.context_tokens = context_tokens
        self.decode = MovingRate()
        self.prefill = MovingRate()
        #: Jobs that the server has of this model, and those that wait; the workload counts them.
        self.running = 0
        self.queued = 0
        #: Whether the server has it in memory, as far as is known.
        self.warm = listed.loaded
        self.gone = False

    @property
    def lend(self) -> bool:
        """Whether peers may use it."""
        return self.engine.lend

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find room."""
        return self.engine.workload.retry_after

    @property
    def slots(self) -> int:
        """Jobs at a time, of all models of the server together."""
        return self.engine.slots

    @property
    def state(self) -> State:
        """How it is: `idle` is one that the server has to load first."""
        if self.engine.error is not None or self.gone:
            return "failed"
        return "loaded" if self.warm else "idle"

    @property
    def error(self) -> str | None:
        """Why it is failed, None while it is not."""
        if self.engine.error is not None:
            return f"{self.engine.label} {self.engine.error}"
        return f"{self.engine.label} no longer has it" if self.gone else None

    @property
    def problem(self) -> ModelLoadError | None:
        """Why no job for it can be run now, None unless it is failed."""
        if self.error is None:
            return None
        return ModelLoadError(f"{self.name} cannot be run: {self.error}", retry_after=self.engine.next_look)

    def admit(self, request: InferRequest) -> ExternalJob:
        """Take a job in; the server gets it as soon as it has room.

        Raises ModelLoadError while the server cannot be used, NoLocalModelError for a peer's job where it is not lent,
        OverloadedError when the queue or its asker's share is full, EngineError and BadRequestError for what this kind
        of server cannot do, DrainingError after the end.
        """
        if not self.lend and asker_of(request) != LOCAL:
            raise NoLocalModelError(f"this box does not lend {self.name}")
        if self.problem is not None:
            raise self.problem
        self.engine.workload.check(request)
        body = body_of(request, kind=self.engine.kind, model=self.listed.id, context_tokens=self.context_tokens)
        job = ExternalJob(self, request, body)
        self.engine.workload.add(job)
        return job

    def release(self, job: ExternalJob) -> None:
        """The job's caller is done with it. One that runs is cancelled by closing its connection."""
        self.engine.workload.release(job)

    def update(self, listed: Listed, context_tokens: int) -> bool:
        """Take what the server says of it now; whether anything is different."""
        before = (self.name, self.context_tokens, self.state, self.listed)
        self.listed, self.name, self.context_tokens = listed, listed.name, context_tokens
        self.warm, self.gone = listed.loaded, False
        return before != (self.name, self.context_tokens, self.state, self.listed)

    def measure(self, *, tokens: int, decode_s: float, prompt_tokens: int, prefill_s: float, was_warm: bool) -> None:
        """Take what a job showed. Loading is no part of what a prompt takes, and few tokens show nothing."""
        if tokens >= 8 and decode_s > 0:
            self.decode.add(min((tokens - 1) / decode_s, _MAX_DECODE))
        if prompt_tokens >= 16 and prefill_s > 0 and was_warm:
            self.prefill.add(min(prompt_tokens / prefill_s, _MAX_PREFILL))
