"""A job as it is watched from outside: what it was asked for, what has come of it, and when.

The code that runs a job knows nothing of who watches it, but for `note`, which takes the events of engines and peers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

from agent.jobs.distribution import TOKEN_GAPS, Distribution
from agent.jobs.job import JobEvent, Resumed, Routed
from agent.jobs.outcome import MAX_TRIED, Ending, Outcome, Role, Route, known_code, known_phase
from agent.trace import Span, child, parse
from fleet.net.messages import MAX_MODEL_NAME, Delta, Embedded, Finished, InferRequest, Started

_JOB: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_KINDS: Final = ("chat", "completion", "embedding")

_CURRENT: ContextVar[Observation | None] = ContextVar("shoal_observation", default=None)


class Observation:
    """One job from when this box took it. `now` is always the monotonic clock that `began` was read from (seconds)."""

    def __init__(
        self, role: Role, began: float, *, job: str, kind: str, asked: str, peer: str, parent: Span | None
    ) -> None:
        self.role: Final = role
        self.span: Final = child(parent)
        self.gaps: Final = Distribution(TOKEN_GAPS)
        #: How a job that ended well came to where it ran; see `agent.observe.counts`.
        self.routed: Routed | None = None
        self.resumed = False
        #: The job that this one only repeats the answer of.
        self.repeats = ""
        self._parent = parent
        self._began = began
        self._job, self._kind, self._asked, self._peer = job, kind, asked, peer
        self._model = self._hash = ""
        self._tried: list[tuple[str, str]] = []
        self._prompt_tokens = self._tokens = 0
        self._queued: float | None = None
        self._first: float | None = None
        self._last = began

    @classmethod
    def asked_here(cls, request: InferRequest, began: float) -> Observation:
        """A job of a local client."""
        parent = parse(request.traceparent)
        kind, asked = request.kind, request.model
        return cls("asker", began, job=request.job, kind=kind, asked=asked, peer="", parent=parent)

    @classmethod
    def asked_by(cls, peer_id: str, body: object, began: float) -> Observation:
        """A job of a peer, whose request has not been checked: only what has the form it should have is taken."""
        facts: Mapping[object, object] = body if isinstance(body, dict) else {}
        job, kind, asked, trace = (facts.get(name) for name in ("job", "kind", "model", "traceparent"))
        return cls(
            "lender",
            began,
            job=job if isinstance(job, str) and _JOB.fullmatch(job) else "",
            kind=kind if isinstance(kind, str) and kind in _KINDS else "",
            asked=asked if isinstance(asked, str) and len(asked) <= MAX_MODEL_NAME else "",
            peer=peer_id,
            parent=parse(trace) if isinstance(trace, str) else None,
        )

    def take(self, event: JobEvent | Started, now: float) -> None:
        """One event as it reaches whoever asked."""
        match event:
            case Started():
                if self.role == "lender":
                    self._ran(event.model, event.hash, event.prompt_tokens)
            case Routed():
                self._take_route(event)
            case Resumed():
                self.resumed = True
                self._take_route(event.routed)
            case Delta():
                self._take_tokens(event.tokens, now)
            case Embedded():
                self._first = now if self._first is None else self._first
            case Finished():
                self._prompt_tokens = max(self._prompt_tokens, event.prompt_tokens)

    def began_there(self, now: float) -> None:
        """A box has begun with the job; where that came to nothing, the next one's beginning counts."""
        if self._first is None:
            self._queued = now

    def failed_at(self, peer_id: str, code: str) -> None:
        """A box failed the job, and another may be asked."""
        if len(self._tried) < MAX_TRIED:
            self._tried.append((peer_id, known_code(code)))

    def _take_route(self, routed: Routed) -> None:
        self.routed = routed
        self.repeats = routed.repeats or ""
        self._ran(routed.model, routed.model_hash, max(self._prompt_tokens, routed.prompt_tokens))
        self._peer = "" if routed.local else routed.peer_id

    def _ran(self, model: str, model_hash: str, prompt_tokens: int) -> None:
        self._model, self._hash, self._prompt_tokens = model, model_hash, prompt_tokens

    def _take_tokens(self, tokens: int, now: float) -> None:
        self._tokens += tokens
        if self._first is None:
            self._first = now
        elif tokens:
            self.gaps.add(max(0.0, now - self._last) / tokens, tokens)
        self._last = now

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._tokens

    @property
    def route(self) -> Route:
        """Where it ran, as far as that is known; what is lent runs here."""
        if self.role == "lender":
            return "local" if self._model else "none"
        return "none" if self.routed is None else ("local" if self.routed.local else "peer")

    def end(
        self, outcome: Ending, now: float, at: float, *, code: str = "", phase: object = "", name: str = ""
    ) -> Outcome:
        """What became of it: `at` is the wall clock, in seconds since the epoch, `name` what people call the peer."""
        return Outcome(
            at=at,
            job=self._job,
            role=self.role,
            outcome=outcome,
            error=known_code(code) if code else "",
            phase=known_phase(phase),
            kind=self._kind,
            asked=self._asked,
            model=self._model,
            hash=self._hash,
            peer=self._peer,
            peer_name=name,
            route=self.route,
            tried=tuple(self._tried),
            repeats=self.repeats,
            prompt_tokens=self._prompt_tokens,
            tokens=self._tokens,
            queue_ms=self._since(self._queued),
            first_token_ms=self._since(self._first),
            total_ms=self._since(now) or 0.0,
            traceparent=str(self.span),
            parent="" if self._parent is None else self._parent.span_id,
        )

    @property
    def peer(self) -> str:
        """The PeerID of the other box, empty where there is none."""
        return self._peer

    def _since(self, moment: float | None) -> float | None:
        return None if moment is None else round(max(0.0, moment - self._began) * 1000, 3)


def watching(seen: Observation | None) -> Observation | None:
    """Make an observation the one that `note` and `failed_at` report to, in this task and those it starts from now on.

    Returns the one before it, to be put back.
    """
    before = _CURRENT.get()
    _CURRENT.set(seen)
    return before


def note(event: Started | Delta | Embedded | Finished, now: float) -> None:
    """An event of the engine, or of a peer, for the job of this task. Does nothing where nobody watches."""
    seen = _CURRENT.get()
    if seen is None:
        return
    if isinstance(event, Started):
        seen.began_there(now)
    if seen.role == "lender":
        seen.take(event, now)


def failed_at(peer_id: str, code: str) -> None:
    """A box failed the job of this task, which may be tried elsewhere. Does nothing where nobody watches."""
    seen = _CURRENT.get()
    if seen is not None:
        seen.failed_at(peer_id, code)
