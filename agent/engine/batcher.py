"""Continuous batching: requests join and leave at every decoding step. Imported in the child process only."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from agent.engine.answers import failed
from agent.engine.context import AbortedError, Context, LostError, NoRoomError
from agent.engine.inbox import Inbox
from agent.engine.keeping import Keeping
from agent.engine.ledger import Ledger
from agent.engine.live import Item, Live, Reason
from agent.engine.llama import Model
from agent.engine.prepare import Prepared
from agent.engine.protocol import Begun, Done, Statistics, Step, Up
from agent.engine.sampling import Candidates, Sampler
from agent.engine.schedule import Pace, Running, Slice, plan, to_yield
from agent.engine.sessions import Sessions
from agent.errors import AgentError, EngineError

#: New tokens that there is to be room for when a request is let in; more is found on the way, or somebody yields.
_RESERVE: Final = 64


class Batcher:
    """The requests of one model. All of it belongs to one thread; each `step` is one decoding step."""

    def __init__(
        self, model: Model, context: Context, inbox: Inbox[Any], send: Callable[[Up], None], *, cells: int, slots: int,
        sequences: int, sessions: Sessions | None = None, parking: int = 0,
    ) -> None:  # fmt: skip
        """`parking` bytes may be taken for sequences that are over, beside the context's `cells`."""
        self._model = model
        self._context = context
        self._inbox = inbox
        self._send = send
        self._slots = slots
        self._ledger = Ledger(cells)
        self._keeping = Keeping(
            context, self._ledger, sequences, sessions, whole_only=model.window > 0 or model.recurrent, parking=parking
        )
        self._candidates = Candidates(model.vocab_size)
        self._pace = Pace(context.batch)
        self._waiting: deque[Live] = deque()
        self._running: list[Live] = []
        self._order = 0
        self._held = False
        self._steps = self._tokens = self._reused = self._yielded = self._aborted = 0
        self._admit = self._build = self._decode = self._sample_time = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    def expect(self, rate: float) -> None:
        """Before the first step: about so many tokens of a prompt are read per second, 0 where that is not known."""
        self._pace.start_with(rate)

    def add(self, request: Prepared) -> None:
        """Take a request in; it joins at one of the next steps."""
        job = request.job
        seed = job.seed if job.seed >= 0 else random.SystemRandom().getrandbits(32)
        sampler = Sampler(self._model.vocab, self._candidates, job, seed=seed, enforcer=request.enforcer)
        self._order += 1
        sequence = Running(job.id, job.owner, list(request.tokens), len(request.tokens), self._order)
        self._waiting.append(Live(request, sequence, sampler))
        self._send(Begun(job.id, len(request.tokens), request.cut, request.cut_messages))

    def fail(self, id: int, error: AgentError) -> None:
        """Tell that a request cannot be run."""
        self._inbox.over(id)
        self._send(failed(id, error))

    def step(self) -> None:
        """Let requests go and in, decode one step, and tell what it gave."""
        began = time.perf_counter()
        self._end_cancelled()
        self._let_in()
        if self._running:
            self._keeping.step_aside()
        let_in = time.perf_counter()
        self._admit += let_in - began
        slices = self._fitting()
        if not slices:
            return
        ids = frozenset(one.sequence.id for one in slices)
        if not self._inbox.begin_step(ids):
            return
        built = time.perf_counter()
        self._build += built - let_in
        try:
            where = self._context.decode(slices)
        except (AbortedError, NoRoomError, EngineError) as error:
            self._after_failure(slices, error)
            return
        finally:
            self._inbox.end_step()
        decoded = time.perf_counter()
        self._decode += decoded - built
        self._steps += 1
        self._pace.note(slices, decoded - built)
        self._take_in(slices, where, (decoded - built) * 1000)
        self._sample_time += time.perf_counter() - decoded

    def spare(self, cells: int) -> int | None:
        """The number of an empty sequence with so many cells free beside it, for what the batcher does not know of.

        It is to be empty again before the next step. None while there is anything to do.
        """
        return None if self.busy else self._keeping.spare(cells)

    def save_one(self) -> bool:
        """Put one conversation that has gone on on disk; False where there is none. For when there is nothing to do."""
        return self._keeping.save_one()

    def statistics(self, id: int) -> Statistics:
        """How the engine is now."""
        return Statistics(
            id=id,
            running=len(self._running),
            waiting=len(self._waiting),
            kept=len(self._keeping),
            cells=self._ledger.cells,
            cells_used=self._ledger.used,
            cells_kept=self._ledger.used - sum(self._ledger.own(live.sequence.seq) for live in self._running),
            steps=self._steps,
            tokens=self._tokens,
            reused=self._reused,
            yielded=self._yielded,
            aborted=self._aborted,
            admit_us=round(self._admit * 1e6),
            build_us=round(self._build * 1e6),
            decode_us=round(self._decode * 1e6),
            sample_us=round(self._sample_time * 1e6),
        )

    # --- in and out -------------------------------------------------------------------------------------------------

    def _end_cancelled(self) -> None:
        cancelled = self._inbox.cancelled()
        if cancelled:
            for live in [*self._running, *self._waiting]:
                if live.sequence.id in cancelled:
                    self._end(live, "cancelled")

    def _let_in(self) -> None:
        """Let waiting requests in, in their order, as far as there are slots and cells.

        One that begins as another does whose prompt is being read waits for that, and then need not read it again.
        """
        for live in tuple(self._waiting):
            if len(self._running) >= self._slots or self._held:
                return
            sequence, session = live.sequence, live.request.job.session
            if saved := live.request.saved:
                live.request = replace(live.request, saved=None)
                self._keeping.restore(sequence, session, saved)
            running = [one.sequence for one in self._running]
            found = self._keeping.find(sequence, session, running)
            if self._keeping.is_being_read(sequence, found, running):
                continue
            room = min(live.limit, _RESERVE)
            if not self._keeping.admit(sequence, found, session, room, alone=not running):
                return  # somebody will end
            self._waiting.remove(live)
            self._reused += sequence.reused
            self._running.append(live)

    def _end(self, live: Live, reason: Reason, error: AgentError | None = None) -> None:
        """A request is over: its cells are kept for the next that begins alike, and its slot is free."""
        sequence = live.sequence
        if live in self._running:
            self._running.remove(live)
        else:
            self._waiting.remove(live)
        live.sampler.close()
        if sequence.seq >= 0:
            if error is None and sequence.decoded:
                self._keeping.keep(sequence, live.request.job.session)
            else:
                self._keeping.release(sequence)
        self._held = False
        if error is not None:
            self.fail(sequence.id, error)
            return
        self._inbox.over(sequence.id)
        self._send(
            Done(
                sequence.id,
                reason,
                sequence.prompt_tokens,
                live.count,
                round(live.prefill_ms, 3),
                round(live.decode_ms, 3),
                sequence.reused,
            )
        )

    # --- a step -----------------------------------------------------------------------------------------------------

    def _fitting(self) -> list[Slice]:
        """The next step, made to fit into the cells: what is kept goes first, then the youngest yields."""
        pace = self._pace
        while self._running:
            slices = plan([live.sequence for live in self._running], self._context.batch, pace.chunk, pace.alone)
            need = sum(one.count for one in slices)
            if self._keeping.make_room(need):
                return slices
            self._make_somebody_yield()
        return []

    def _make_somebody_yield(self) -> None:
        """Take the cells of the youngest; it comes back, with what it has said so far, when another has ended."""
        loser = to_yield([live.sequence for live in self._running])
        if loser is None:
            self._end(self._running[0], "length")
            return
        live = next(one for one in self._running if one.sequence is loser)
        self._running.remove(live)
        self._keeping.release(loser)
        self._waiting.appendleft(live)
        self._held = True
        self._yielded += 1

    def _after_failure(self, slices: list[Slice], error: Exception) -> None:
        if isinstance(error, LostError):
            for sequence in error.sequences:
                self._ledger.drop(sequence.seq)
                sequence.decoded = sequence.reused = 0
        if isinstance(error, AbortedError) or (isinstance(error, LostError) and error.aborted):
            self._aborted += 1
        elif isinstance(error, NoRoomError):
            if not self._keeping.give_up_oldest():
                self._make_somebody_yield()
        elif isinstance(error, EngineError):
            concerned = {one.sequence.id for one in slices}
            for live in [one for one in self._running if one.sequence.id in concerned]:
                self._end(live, "stop", error)

    def _take_in(self, slices: list[Slice], where: list[int], took_ms: float) -> None:
        """What a step gave: positions move on, tokens are chosen, all that is new is told in one message."""
        lives = {live.sequence.id: live for live in self._running}
        items: list[Item] = []
        over: list[tuple[Live, Reason, AgentError | None]] = []
        for one, index in zip(slices, where, strict=True):
            live = lives[one.sequence.id]
            self._ledger.append(one.sequence.seq, one.count)
            one.sequence.decoded += one.count
            if live.count:
                live.decode_ms += took_ms
            else:
                live.prefill_ms += took_ms
            if index >= 0:
                before = live.count
                try:
                    reason = live.choose(self._model, self._context.logits(index), items)
                except AgentError as error:
                    over.append((live, "stop", error))
                else:
                    if reason is not None:
                        over.append((live, reason, None))
                self._tokens += live.count - before
        if items:
            self._send(Step(tuple(items)))
        for live, end, problem in over:
            self._end(live, end, problem)
