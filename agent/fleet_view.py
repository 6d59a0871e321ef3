"""The fleet as this box sees it: links, presence and its own engine, in the terms that jobs and the API use."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
import trio

from agent.config import RoutingConfig
from agent.engine.pool import EnginePool, HeldModel
from agent.errors import ModelLoadError
from agent.jobs.neighbourhood import Survey
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState, Policy
from agent.routing.habits import Habits
from agent.routing.offers import Names, Offers, Selection
from agent.routing.pace import Pace, best_of, borrow_only
from agent.routing.score import wellness
from fleet.errors import FleetError, MessageError, RemoteError
from fleet.gossip.presence import INTERVAL, PresenceTable, Seen
from fleet.models.reference import matches
from fleet.models.substitution import Substitution
from fleet.net.link import Link
from fleet.net.messages import (
    METHOD_INFER,
    NOTIFY_PRESENCE,
    Delta,
    Finished,
    HealthPresence,
    Hello,
    InferRequest,
    ModelPresence,
    Presence,
    parse,
    parse_infer_event,
)
from fleet.net.node import Node, NodeEvents

log = structlog.get_logger("shoal.fleet")

#: Changes that follow one another faster than this are sent as one presence (seconds).
_COALESCE = 0.2
#: What the address of a link has in it that goes through another box.
_RELAY = "/p2p-circuit"
_NO_NAMES: Final = Names()
#: Models that a presence has room for.
_MAX_MODELS = 256


@dataclass(frozen=True)
class Condition:
    """How this box is: fractions of its CPU and memory in use, and what else its sensors say."""

    cpu: float = 0.0
    memory: float = 0.0
    health: HealthPresence = field(default_factory=HealthPresence)

    def refusing(self, reason: str) -> Condition:
        """The same box while it takes no jobs of others, for this reason."""
        return replace(self, health=self.health.model_copy(update={"refuses": reason}))


class FleetView:
    """What this box knows of itself and of its neighbours. Implements `agent.jobs.neighbourhood.Neighbourhood`."""

    def __init__(
        self,
        name: str,
        version: str,
        *,
        name_of: Callable[[str], str],
        is_member: Callable[[str], bool],
        draining: Callable[[], bool],
        routing: RoutingConfig | None = None,
    ) -> None:
        self.name = name
        self.refused: Counter[str] = Counter()
        self.presence = PresenceTable()
        self.pool: EnginePool
        self.node: Node
        self._version = version
        self._documented_name = name_of
        self._is_member = is_member
        #: Told of every change of what this box holds or how busy it is.
        self.on_own_change: Callable[[], None] = lambda: None
        #: Told of every job that a peer ran for this box: the peer, the tokens that came, and whether it failed.
        self.on_used: Callable[[str, int, bool], None] = lambda peer_id, tokens, failed: None
        #: Told of every link that comes up.
        self.on_link_up: Callable[[Link], None] = lambda link: None
        #: Awaited before a job is given to a peer.
        self.before_asking: Callable[[str], Awaitable[None]] = _at_once
        #: Told of every link that is over.
        self.on_link_down: Callable[[Link], None] = lambda link: None
        #: Asked how this box is, and for what a peer has given to others, as a share of 1.
        self.condition: Callable[[], Condition] = Condition
        self.record_of: Callable[[str], float] = lambda peer_id: 0.0
        #: Asked what the fleet's document calls models; the same object as long as nothing has changed.
        self.names: Callable[[], Names] = lambda: _NO_NAMES
        #: Asked what holds for requests that do not say where they may run and what may answer.
        self.habits: Callable[[], Habits] = Habits
        self._draining = draining
        self._offers = Offers()
        rules = routing or RoutingConfig()
        self._floor = rules.borrow_only_below
        self._pace = Pace(rules.threshold, rules.borrow_only_below)
        #: Jobs that this box has at a peer now, by its PeerID and the model's hash.
        self._asked: Counter[tuple[str, str]] = Counter()
        self._seq = 0
        self._changed = trio.Event()
        self._own_change = trio.Event()

    @property
    def peer_id(self) -> str:
        """This box's PeerID."""
        return self.node.peer_id

    def events(self) -> NodeEvents:
        """The callbacks that keep this view up to date."""
        return NodeEvents(up=self._up, down=self._down, notify=self._notified)

    # --- what jobs ask ---------------------------------------------------------------------------------------------

    def survey(self, asked: str, substitution: Substitution | None) -> Survey:
        """What there is for a request: here, at every peer that ever spoke to this process, at every configured one.

        `substitution` None is what is usual here. Raises ModelNameError for what names no model.
        """
        own = [_model_presence(held) for held in self.pool.models() if held.hash]
        heard = self.presence.all()
        everything = [*own, *(model for seen in heard.values() for model in seen.presence.models)]
        selection = self._offers.select(asked, substitution or self.habits().substitution, everything, self.names())
        return Survey(selection.choice, self._local_state(selection, own), self._peer_states(selection, heard))

    def policy(self, asked: Policy | None) -> Policy:
        """Where a request may run that says this, or does not say."""
        return asked or self.habits().offload

    def local_state(self, model: str) -> LocalState:
        """This box's own holding of the model with exactly this hash or name."""
        held = self.pool.find(model)
        return self._holding(None if held is None else _model_presence(held))

    def _local_state(self, selection: Selection, own: Sequence[ModelPresence]) -> LocalState:
        found = selection.best_of(own)
        if found is None:
            return self._holding(None)
        return replace(self._holding(found.model), match=found.chosen.match, choice=found.place)

    def _holding(self, held: ModelPresence | None) -> LocalState:
        if held is None:
            return LocalState(self.peer_id, self.name, None)
        slow = self._pace.look(held.hash, held.decode_rate, trio.current_time())
        return LocalState(self.peer_id, self.name, held, slow, wellness(self._own_load()))

    def local_problem(self, model: str) -> ModelLoadError | None:
        """Why this box cannot load a model that it is configured to hold."""
        return self.pool.problem(model)

    def _peer_states(self, selection: Selection, heard: Mapping[str, Seen]) -> Sequence[PeerState]:
        now = trio.current_time()
        refusing = {n.peer_id for n in self.node.neighbours() if n.state == "refused"}
        states = []
        for peer_id, seen in heard.items():
            link, found = self.node.link(peer_id), selection.best_of(seen.presence.models)
            held = found.model if found else None
            states.append(
                PeerState(
                    peer_id=peer_id,
                    name=seen.presence.name,
                    connected=link is not None,
                    age=now - seen.at,
                    draining=seen.presence.state == "draining",
                    model=held,
                    rtt=link.rtt if link else None,
                    refused=peer_id in refusing,
                    relayed=link is not None and _RELAY in link.remote_addr,
                    best_rate=best_of(one.decode_rate for one in seen.presence.models),
                    asked=self._asked[peer_id, held.hash] if held else 0,
                    health=wellness(seen.presence),
                    record=self.record_of(peer_id),
                    refusing=seen.presence.health.refuses if seen.presence.health else "",
                    match=found.chosen.match if found else None,
                    choice=found.place if found else 0,
                )
            )
        known = {state.peer_id for state in states}
        states += [
            PeerState(
                n.peer_id,
                self.name_of(n.peer_id),
                connected=False,
                age=0.0,
                draining=False,
                model=None,
                heard=False,
                refused=n.peer_id in refusing,
            )
            for n in self.node.neighbours()
            if n.peer_id not in known
        ]
        return states

    def known_models(self) -> Sequence[str]:
        """Names of all models held here or by connected peers, sorted."""
        names = {held.name for held in self.pool.models()}
        for link in self.node.links():
            seen = self.presence.last(link.peer_id)
            names |= {model.name for model in seen.presence.models} if seen else set()
        return sorted(names)

    def unheard(self) -> Sequence[str]:
        """Names of neighbours that are down now and may come up: what they hold may be more than is known.

        One that refused this box's key is none of them: only a person can change that.
        """
        return [
            self.name_of(n.peer_id)
            for n in self.node.neighbours()
            if n.state not in ("refused", "denied") and self.node.link(n.peer_id) is None
        ]

    def dial_now(self) -> None:
        """Dial neighbours that are down without waiting for their turn."""
        self.node.dial_now()

    async def wait_change(self) -> None:
        """Return when a peer comes, goes or says something new."""
        await self._changed.wait()

    async def infer(self, peer_id: str, request: InferRequest, emit: EngineEmit) -> None:
        """Run a request on a peer; nothing of it but the InferRequest itself leaves this box.

        Raises RemoteError with the peer's code, PeerUnreachableError when there is no link or it breaks. Cancelling
        it tells the peer to stop.
        """
        await self.before_asking(peer_id)
        link = self.node.link(peer_id)
        if link is None or not self._is_member(peer_id):
            raise RemoteError("peer_unreachable", "not connected", retryable=True)

        tokens = 0
        finished = False
        held = self._held_by(peer_id, request.model)

        async def on_event(body: object) -> None:
            nonlocal tokens, finished
            try:
                event = parse_infer_event(body)
            except MessageError:
                self.refused["bad_event"] += 1
                raise
            if isinstance(event, Delta):
                # What did not come is not counted: a token is a byte at least, but for the few that show nothing.
                tokens += min(event.tokens, max(1, len(event.text.encode())))
            finished = isinstance(event, Finished)
            await emit(event)

        sent = request.model_copy(update={"route": (self.peer_id,)})
        failed = False
        self._asked[peer_id, held] += 1
        try:
            await link.call(METHOD_INFER, sent.model_dump(mode="json", exclude_none=True), on_event)
            failed = not finished
        except FleetError:
            failed = True
            raise
        finally:
            self._asked[peer_id, held] -= 1
            if not self._asked[peer_id, held]:
                del self._asked[peer_id, held]
            self.on_used(peer_id, tokens, failed)

    def name_of(self, peer_id: str) -> str:
        """What people call a box: what it says of itself, else what the document calls it, else its key's end."""
        seen = self.presence.last(peer_id)
        return (seen.presence.name if seen else "") or self._documented_name(peer_id) or f"…{peer_id[-8:]}"

    def _held_by(self, peer_id: str, model: str) -> str:
        """The hash of what a peer holds by this name or hash; the text itself where it does not say."""
        seen = self.presence.last(peer_id)
        held = _find(seen.presence, model) if seen else None
        return held.hash if held else model

    def only_borrows(self) -> str | None:
        """Why this box runs nothing for others, whatever its load; None where it may."""
        best = best_of(held.decode_rate for held in self.pool.models() if held.hash and held.lend)
        if best is None or not borrow_only(best, self._floor):
            return None
        return f"only borrows, {best:.3g} tok/s at best"

    # --- presence --------------------------------------------------------------------------------------------------

    def own_presence(self) -> Presence:
        """This box's presence as it stands, with the next sequence number."""
        self._seq += 1
        lent = (_model_presence(held) for held in self.pool.models() if held.hash and held.lend)
        return self._own_load().model_copy(update={"seq": self._seq, "models": tuple(lent)[:_MAX_MODELS]})

    def _own_load(self) -> Presence:
        condition = self.condition()
        return Presence(
            seq=self._seq,
            name=self.name,
            version=self._version,
            state="draining" if self._draining() else "serving",
            cpu=condition.cpu,
            memory=condition.memory,
            health=condition.health,
        )

    def hello(self) -> Hello:
        """What this box says first on a new link."""
        return Hello(name=self.name, version=self._version, presence=self.own_presence())

    def note_own_change(self) -> None:
        """What this box holds or how busy it is has changed: say so soon."""
        self._own_change.set()
        self.on_own_change()
        self._note_change()

    def note_document_change(self) -> None:
        """The fleet document has changed: who may be asked may have, too."""
        for peer_id in self.presence.all():
            if not self._is_member(peer_id):
                self.presence.forget(peer_id)
        self._note_change()

    async def run(self) -> None:
        """Send presence to every neighbour each 10 s and soon after each change, until cancelled."""
        while True:
            with trio.move_on_after(INTERVAL):
                await self._own_change.wait()
                await trio.sleep(_COALESCE)
            self._own_change = trio.Event()
            if self.node.links():
                self.node.broadcast(NOTIFY_PRESENCE, self.own_presence().model_dump(mode="json"))

    def _up(self, link: Link) -> None:
        # Guests may ask, and boxes that are joining may join; nothing is asked of either, whatever they say they hold.
        if self._is_member(link.peer_id):
            self.presence.greet(link.peer_id, link.hello.presence, trio.current_time())
        self.on_link_up(link)
        self._note_change()

    def _down(self, link: Link) -> None:
        self.on_link_down(link)
        self._note_change()

    def _notified(self, link: Link, topic: str, body: object) -> None:
        if topic != NOTIFY_PRESENCE:
            return  # a newer box may tell more than this one understands
        presence = parse(Presence, body)
        if not self._is_member(link.peer_id):
            return
        if self.presence.update(link.peer_id, presence, trio.current_time()):
            self._note_change()
        else:
            self.refused["replayed_presence"] += 1

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _model_presence(held: HeldModel) -> ModelPresence:
    return ModelPresence(
        hash=held.hash,
        name=held.name,
        reads=held.reads,
        named=held.named,
        state=held.state,
        context_tokens=held.context_tokens,
        decode_rate=held.decode_rate,
        prefill_rate=held.prefill_rate,
        running=held.running,
        queued=held.queued,
        slots=held.slots,
        free_cells=_free_cells(held),
    )


def _free_cells(held: HeldModel) -> int | None:
    """About how many tokens more its cache has room for; which of them a job really has only its process knows."""
    if not held.cells:
        return None
    return held.cells * max(0, held.slots - held.running) // held.slots


async def _at_once(peer_id: str) -> None:
    """Nothing is to be waited for."""


def _find(presence: Presence, model: str) -> ModelPresence | None:
    return next((m for m in presence.models if matches(model, model_hash=m.hash, name=m.name)), None)


def unix_time_of(moment: float) -> float:
    """A moment on trio's clock as seconds since the epoch, for people."""
    return time.time() - (trio.current_time() - moment)
