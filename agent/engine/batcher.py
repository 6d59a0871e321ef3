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
from agent.engine.ledger import Ledger
from agent.engine.live import Item, Live, Reason
from agent.engine.llama import Model
from agent.engine.prefix import Beginning, Kept, Shelf, best_beginning, common
from agent.engine.prepare import Prepared
from agent.engine.protocol import Begun, Done, Statistics, Step, Up
from agent.engine.sampling import Candidates, Sampler
from agent.engine.schedule import Pace, Running, Slice, plan, to_yield
from agent.engine.sessions import Sessions
from agent.errors import AgentError, EngineError

#: New tokens that there is to be room for when a request is let in; more is found on the way, or somebody yields.
_RESERVE: Final = 64
#: Tokens of sequences that are over and kept, but for the newest: every step looks at each cell there is, if only to
#: see that it is another's. Measured on SmolLM2-135M: nothing to be seen at 2,048, a third of a step at 4,096.
_KEPT: Final = 2048


class Batcher:
    """The requests of one model. All of it belongs to one thread; each `step` is one decoding step."""

    def __init__(
        self, model: Model, context: Context, inbox: Inbox[Any], send: Callable[[Up], None], *, cells: int, slots: int,
        sequences: int, sessions: Sessions | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._context = context
        self._inbox = inbox
        self._send = send
        self._slots = slots
        self._sessions = sessions
        #: Conversations that are kept and not on disk yet, by llama.cpp's number.
        self._unsaved: set[int] = set()
        self._ledger = Ledger(cells)
        self._candidates = Candidates(model.vocab_size)
        self._pace = Pace(context.batch)
        self._numbers = deque(range(sequences))
        self._waiting: deque[Live] = deque()
        self._running: list[Live] = []
        self._shelf = Shelf()
        self._whole_only = model.window > 0 or model.recurrent
        self._order = 0
        self._held = False
        self._steps = self._tokens = self._reused = self._yielded = self._aborted = 0
        self._build = self._decode = self._sample_time = 0.0

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
        slices = self._fitting()
        if not slices:
            return
        ids = frozenset(one.sequence.id for one in slices)
        if not self._inbox.begin_step(ids):
            return
        built = time.perf_counter()
        self._build += built - began
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
        if self.busy:
            return None
        while (not self._numbers or self._ledger.free < cells) and (oldest := self._shelf.oldest()):
            self._give_up(oldest)
        return self._numbers[0] if self._numbers and self._ledger.free >= cells else None

    def save_one(self) -> bool:
        """Put one conversation that has gone on on disk; False where there is none. For when there is nothing to do."""
        for kept in self._shelf.all():
            if kept.seq in self._unsaved:
                self._save(kept)
                return True
        return False

    def _save(self, kept: Kept) -> None:
        self._unsaved.discard(kept.seq)
        if self._sessions is not None:
            self._sessions.save(kept.owner, kept.session, kept.tokens, self._context.state(kept.seq))

    def statistics(self, id: int) -> Statistics:
        """How the engine is now."""
        return Statistics(
            id=id,
            running=len(self._running),
            waiting=len(self._waiting),
            kept=len(self._shelf),
            cells=self._ledger.cells,
            cells_used=self._ledger.used,
            cells_kept=self._ledger.used - sum(self._ledger.own(live.sequence.seq) for live in self._running),
            steps=self._steps,
            tokens=self._tokens,
            reused=self._reused,
            yielded=self._yielded,
            aborted=self._aborted,
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
        """Let waiting requests in, in their order, as far as there are slots and cells."""
        while self._waiting and len(self._running) < self._slots and not self._held:
            live = self._waiting[0]
            sequence = live.sequence
            self._restore(live)
            beginning = best_beginning(
                sequence.tokens,
                sequence.owner,
                self._shelf.all(),
                ((one.sequence.seq, one.sequence.owner, one.sequence.tokens[: one.sequence.decoded])
                 for one in self._running),
                whole_only=self._whole_only,
                session=live.request.job.session,
            )  # fmt: skip
            need = len(sequence.tokens) - (beginning.length if beginning else 0) + min(live.limit, _RESERVE)
            keep = beginning.seq if beginning else -1
            while self._ledger.free < need and (oldest := self._shelf.oldest(but=keep)):
                self._give_up(oldest)
            if self._ledger.free < need and self._running:
                return  # somebody will end
            self._waiting.popleft()
            self._give_cells(sequence, beginning, live.request.job.session)
            self._reused += sequence.reused
            self._running.append(live)

    def _restore(self, live: Live) -> None:
        """Bring what is on disk of a request's conversation into memory, as if it had just ended."""
        saved, live.request = live.request.saved, replace(live.request, saved=None)
        if saved is None:
            return
        alike = common(saved.tokens, live.sequence.tokens)
        if alike < (len(saved.tokens) if self._whole_only else len(saved.tokens) // 2):
            return
        while (self._ledger.free < len(saved.tokens) or not self._numbers) and (oldest := self._shelf.oldest()):
            self._give_up(oldest)
        if self._ledger.free < len(saved.tokens) or not self._numbers:
            return
        seq = self._numbers.popleft()
        if self._context.restore(seq, saved.state):
            self._ledger.append(seq, len(saved.tokens))
            self._keep(Kept(seq, live.sequence.owner, list(saved.tokens), live.request.job.session))
        else:
            self._context.forget(seq)
            self._numbers.append(seq)

    def _keep(self, kept: Kept) -> None:
        """Keep a sequence, and of the others no more than does not slow down those that run."""
        self._shelf.put(kept)
        while len(self._shelf) > 1 and self._shelf.tokens > _KEPT and (oldest := self._shelf.oldest(but=kept.seq)):
            self._give_up(oldest)
        if self._sessions is not None and kept.session:
            self._sessions.note_resident(kept.owner, kept.session, here=True)

    def _give_cells(self, sequence: Running, beginning: Beginning | None, session: str) -> None:
        """Give a sequence llama.cpp's number and, where there is one, the beginning that it shares with another."""
        if beginning is not None and beginning.kept is not None:
            self._take_over(beginning.kept, session)
            sequence.seq = beginning.seq
            if beginning.length < len(beginning.kept.tokens) and not self._context.forget(
                sequence.seq, beginning.length
            ):
                self._clear(sequence)
                return
            self._ledger.trim(sequence.seq, beginning.length)
            sequence.decoded = sequence.reused = beginning.length
            return
        if not self._numbers and (oldest := self._shelf.oldest(but=beginning.seq if beginning else -1)):
            self._give_up(oldest)
        if not self._numbers and (oldest := self._shelf.oldest()):
            beginning = None  # it is the last that is kept, and its number is needed
            self._give_up(oldest)
        sequence.seq = self._numbers.popleft()
        if beginning is not None:
            self._context.copy(beginning.seq, sequence.seq, beginning.length)
            self._ledger.share(beginning.seq, sequence.seq, beginning.length)
            sequence.decoded = sequence.reused = beginning.length

    def _take_over(self, kept: Kept, session: str = "") -> None:
        """A sequence that is kept is needed for another: what is not on disk of its conversation goes there first.

        Not where the same conversation goes on: it is saved when its turn is over.
        """
        self._shelf.take(kept.seq)
        if kept.seq in self._unsaved and kept.session != session:
            self._save(kept)
        self._unsaved.discard(kept.seq)
        if self._sessions is not None and kept.session:
            self._sessions.note_resident(kept.owner, kept.session, here=False)

    def _clear(self, sequence: Running) -> None:
        self._context.forget(sequence.seq)
        self._ledger.drop(sequence.seq)
        sequence.decoded = sequence.reused = 0

    def _give_up(self, kept: Kept) -> None:
        self._take_over(kept)
        self._context.forget(kept.seq)
        self._ledger.drop(kept.seq)
        self._numbers.append(kept.seq)

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
                tokens = sequence.tokens[: sequence.decoded]
                session = live.request.job.session
                self._keep(Kept(sequence.seq, sequence.owner, tokens, session))
                if session and self._sessions is not None:
                    self._unsaved.add(sequence.seq)
            else:
                self._give_up(Kept(sequence.seq, sequence.owner, ()))
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
            while self._ledger.free < need and (oldest := self._shelf.oldest()):
                self._give_up(oldest)
            if self._ledger.free >= need:
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
        self._clear(loser)
        self._numbers.append(loser.seq)
        loser.seq = -1
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
            if oldest := self._shelf.oldest():
                self._give_up(oldest)
            else:
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
