"""The life of one server beside this box: found, listed, used, lost, found again."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.config import EngineKind
from agent.engine.external import failure
from agent.engine.external.answer import AnswerReader, ServerRefusal
from agent.engine.external.conversation import RefusedJobError, converse
from agent.engine.external.derived import id_at_place, id_of_digest
from agent.engine.external.dialect import path_of
from agent.engine.external.held import ExternalModel
from agent.engine.external.http import Server, fetch
from agent.engine.external.listing import Listed, Shown
from agent.engine.external.survey import Kind, Survey, look_closer, survey
from agent.engine.external.trouble import ConnectTroubleError, ServerTroubleError, StatusTroubleError
from agent.engine.external.workload import ExternalJob, Workload
from agent.engine.fair_queue import LOCAL
from agent.engine_url import EngineUrl
from agent.errors import EngineError, ModelLoadError
from fleet.models.reference import canonical_name

#: Seconds a server has to say what it is and has; more once it has been up, when it may be busy.
FIRST_LOOK: Final = 1.5
LATER_LOOK: Final = 5.0
#: Seconds between looks at a server that is up, and at most at one that is not.
REFRESH: Final = 30.0
MAX_BACKOFF: Final = 60.0
#: Lists in a row that a server that runs no jobs may be late with.
_LATE_LISTS: Final = 2
_MAX_KEY: Final = 4096

log = structlog.get_logger("shoal.engine")


@dataclass(frozen=True)
class Settings:
    """How one server is to be used. `wanted` are names of models, None for all; `slots` None goes by the kind.

    `context_tokens` None is what the server says, `usual_context` what is taken where it says nothing. A server that
    was not configured but looked for is `detected`.
    """

    url: EngineUrl
    kind: EngineKind = "auto"
    key_file: Path | None = None
    wanted: tuple[str, ...] | None = None
    context_tokens: int | None = None
    usual_context: int = 4096
    slots: int | None = None
    lend: bool = True
    max_queue: int = 32
    detected: bool = False


class ExternalEngine:
    """One server and its models. `box` is this box's PeerID. All methods but `run` return at once."""

    def __init__(self, settings: Settings, box: str, on_change: Callable[[], None]) -> None:
        self.settings = settings
        self.lend = settings.lend
        self.kind: Kind = "openai" if settings.kind == "auto" else settings.kind
        #: Why the server cannot be used now, as a phrase that follows its name; None while it can.
        self.error: str | None = "has not been asked yet"
        #: Whether it has ever been up in this process.
        self.found = False
        self.looked = trio.Event()
        self.workload = Workload(self._serve, settings.max_queue, on_change)
        self._box = box
        self._on_change = on_change
        self._server = Server(settings.url, connect_limit=FIRST_LOOK)
        self._models: dict[str, ExternalModel] = {}
        self._known: dict[str, Shown] = {}
        self._failures = 0
        self._next_look = math.inf
        self._look_now = trio.Event()

    @property
    def models(self) -> tuple[ExternalModel, ...]:
        """The models that it lists, or listed last, in its order."""
        return tuple(self._models.values())

    @property
    def label(self) -> str:
        """What the server is called in errors of this box."""
        what = self.kind if self.found or self.settings.kind != "auto" else "the server"
        return f"{what} at {self.settings.url}"

    @property
    def slots(self) -> int:
        """Jobs that the server is given at a time."""
        return self.workload.slots

    @property
    def next_look(self) -> int:
        """Whole seconds until the server is looked at again, at least one."""
        wait = self._next_look - trio.current_time()
        return max(1, math.ceil(wait)) if math.isfinite(wait) else 1

    async def run(self) -> None:
        """Use the server until cancelled; then every job ends with DrainingError and every connection is closed."""
        try:
            async with trio.open_nursery() as nursery:
                self.workload.start(nursery)
                while True:
                    self._look_now = trio.Event()
                    wait = await self._look()
                    self._next_look = trio.current_time() + wait
                    self.looked.set()
                    with trio.move_on_after(wait):
                        await self._look_now.wait()
        finally:
            self.workload.stop()

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _look(self) -> float:
        """Ask the server what it has; returns the seconds until it is asked again."""
        limit = LATER_LOOK if self.error is None else FIRST_LOOK
        try:
            self._server = Server(self.settings.url, _key_in(self.settings.key_file), FIRST_LOOK)
            with trio.move_on_after(limit) as waiting:
                found = await survey(self.settings.kind, self._fetch, self._is_wanted)
            if waiting.cancelled_caught:
                self._late(f"did not say within {limit:g} s what it has")
            else:
                self._take(await look_closer(found, self._fetch, self._known))
        except StatusTroubleError as trouble:
            refused = trouble.status in (401, 403)
            self._fail("does not take this box's API key (engines.api_key_file)" if refused else trouble.reason)
        except ServerTroubleError as trouble:
            self._fail(trouble.reason)
        if not self._failures:
            return REFRESH
        return float(min(MAX_BACKOFF, 2 ** min(self._failures - 1, 16)))

    async def _fetch(self, path: str, post: object = None) -> object:
        return await fetch(self._server, path, post)

    def _is_wanted(self, listed: Listed) -> bool:
        wanted = self.settings.wanted
        return wanted is None or any(name == listed.id or canonical_name(name) == listed.name for name in wanted)

    def _take(self, found: Survey) -> None:
        """The server is up and has these models."""
        was = (self.error, self.kind, self.slots)
        self.kind, self.error, self.found, self._failures = found.kind, None, True, 0
        self.workload.slots = self.settings.slots or found.slots
        changed = was != (None, self.kind, self.slots)
        models: dict[str, ExternalModel] = {}
        for listed in found.models:
            hash, context = self._id_of(listed), self._context_of(listed)
            model = self._models.pop(listed.id, None)
            if model is not None and model.identity.hash == hash:
                changed = model.update(listed, context) or changed
            else:
                if model is not None:
                    model.gone = True
                model = ExternalModel(self, listed, hash, context)
                changed = True
            models[listed.id] = model
        for model in self._models.values():
            model.gone = changed = True
        self._models = models
        if was[0] is not None:
            log.info("engine.external_up", kind=self.kind, url=str(self.settings.url), models=len(models))
        if changed:
            self.workload.hand_out()
            self._on_change()

    def _id_of(self, listed: Listed) -> str:
        if listed.digest:
            return id_of_digest(listed.digest)
        return id_at_place(self._box, str(self.settings.url), listed.id, listed.weights)

    def _context_of(self, listed: Listed) -> int:
        return self.settings.context_tokens or listed.context_tokens or self.settings.usual_context

    def _late(self, reason: str) -> None:
        """A server that works on jobs may be late with its list; one that does not, not for long."""
        if self.error is None and (self.workload.running or self._failures + 1 < _LATE_LISTS):
            self._failures += 1
        else:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        """The server cannot be used, and its models with it, until a look shows otherwise."""
        self._failures += 1
        was, self.error = self.error, reason
        if was == reason:
            return
        if not self.settings.detected or self.found:
            log.warning("engine.external_down", kind=self.kind, url=str(self.settings.url), reason=reason)
        self.workload.end_waiting(ModelLoadError(f"{self.label} {reason}", retry_after=1))
        self._on_change()

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def _serve(self, job: ExternalJob) -> None:
        model, asked, was_warm = job.model, trio.current_time(), job.model.warm
        reader = AnswerReader(
            job.request,
            name=model.name,
            hash=model.identity.hash,
            context_tokens=model.context_tokens,
            asked=asked,
        )
        try:
            await converse(self._server, path_of(job.request), job.body, reader, job.put)
        except RefusedJobError as refused:
            self._refused(job, refused)
        except ServerRefusal as refused:
            job.end(
                failure.of_event(
                    refused.body,
                    name=model.name,
                    local=job.asker == LOCAL,
                    context_tokens=model.context_tokens,
                )
            )
        except ConnectTroubleError as trouble:
            self._fail(trouble.reason)
            self._look_now.set()
            job.end(model.problem)
        except ServerTroubleError as trouble:
            job.end(EngineError(f"the server that runs {model.name} {trouble.reason}"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller takes no more events, and the job's cancel is on its way
        else:
            job.end(None)
            model.warm = True
            self._measure(model, reader, job, was_warm)

    def _refused(self, job: ExternalJob, refused: RefusedJobError) -> None:
        error = failure.of_status(
            refused.status,
            refused.headers,
            refused.body,
            name=job.model.name,
            local=job.asker == LOCAL,
            context_tokens=job.model.context_tokens,
        )
        log.warning("engine.external_refused", model=job.model.name, status=refused.status, code=error.code)
        if refused.status in (401, 403):
            self._fail("does not take this box's API key (engines.api_key_file)")
        if refused.status in (401, 403, 404):
            self._look_now.set()
        job.end(error)

    def _measure(self, model: ExternalModel, reader: AnswerReader, job: ExternalJob, was_warm: bool) -> None:
        if reader.first is None or job.held_up > 0.1 * (reader.last - reader.first):
            return  # it was the caller who set the pace
        model.measure(
            tokens=reader.tokens,
            decode_s=reader.last - reader.first,
            prompt_tokens=reader.prompt_tokens,
            prefill_s=reader.first - reader.asked,
            was_warm=was_warm,
        )
        self._on_change()


def _key_in(path: Path | None) -> str:
    """The key in a file, empty without one; read at each look, so that it can be changed while the agent runs."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            mode, data = stat.S_IMODE(path.stat().st_mode), file.read(_MAX_KEY + 1)
    except OSError as error:
        raise ServerTroubleError(f"is not asked: its key file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ServerTroubleError(f"is not asked: others can read its key file; run: chmod 600 {path}")
    key = data.strip()
    if not key or len(key) > _MAX_KEY or not key.isascii() or not key.decode().isprintable() or b" " in key:
        raise ServerTroubleError(f"is not asked: {path} does not hold one key on one line")
    return key.decode()
