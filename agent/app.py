"""The composition root: builds every part of one agent, starts them in order, and stops them without losing a job."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from agent.bookkeeping import Bookkeeping
from agent.config import Config
from agent.document_disk import locked_state_dir
from agent.engine.pool import EnginePool
from agent.engine.shares import Shares
from agent.errors import AgentError
from agent.fleet_view import Condition, FleetView
from agent.gossiping import Gossiping
from agent.http.document_socket import DocumentSocket
from agent.http.open_requests import OpenRequests
from agent.http.server import serve
from agent.jobs.active import ActiveJobs
from agent.jobs.lend import Lender, lending_of
from agent.jobs.once import Once
from agent.jobs.run import JobRunner
from agent.joining import Joining, token_at_start
from agent.links import keep_links
from agent.materialised import Materialised
from agent.membership import Membership
from agent.model_keeper import ModelKeeper
from agent.model_names import ModelNames
from agent.model_orders import ModelOrders
from agent.mqtt.around import Agent, Box
from agent.mqtt.side import mqtt_side
from agent.observe.broker import evaluate_broker
from agent.observe.copies import evaluate_copies
from agent.observe.facts import gather
from agent.observe.floods import Floods
from agent.observe.health import Health
from agent.observe.warning import Warning
from agent.observe.warnings import evaluate
from agent.own_facts import OwnFacts
from agent.reconcile.selector import why_not
from agent.routing.chooser import Chooser, rules_of
from agent.routing.habits import habits_of
from agent.services import AgentServices
from agent.version import VERSION
from fleet.document.replica import Change
from fleet.errors import FleetError
from fleet.gossip.joining import Doorkeeper
from fleet.identity.keys import Identity
from fleet.net.gate import Gate
from fleet.net.link import Link
from fleet.net.messages import METHOD_INFER
from fleet.net.node import Node
from fleet.net.rpc import Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

    from agent.mqtt.pipeline import Wish

log = structlog.get_logger("shoal")

#: Seconds for telling clients and peers that their jobs end here.
_FAREWELL: Final = 1.0
#: The scope a peer needs to have jobs run here.
SCOPE_INFER = "infer"


def run_agent(config: Config, identity: Identity) -> int:
    """Run one agent until SIGTERM or SIGINT; returns the exit code of the process.

    The first signal drains: no new jobs, running ones may finish within `timeouts.drain`, then those that are left
    end with an error that their clients and peers are told, everything stops and no child is left. A second signal
    skips the wait. An error that makes it impossible to run (a port in use, a
    state folder in use) is logged with its remedy and returns 1.
    """
    failed = False
    # What holds again once the agent no longer listens for signals: a late one must not turn a clean end into a kill.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        with locked_state_dir(config.state_dir):
            trio.run(_main, config, identity)
    except* (AgentError, FleetError, OSError) as group:
        failed = True
        for error in _leaves(group):
            log.error("agent.failed", reason=str(error))
    return 1 if failed else 0


async def _main(config: Config, identity: Identity) -> None:
    membership = Membership(config.state_dir, identity)
    membership.configured = frozenset(_targets(config))
    membership.open()
    token = token_at_start(config.state_dir, membership)
    active = ActiveJobs()
    requests = OpenRequests()
    gate = Gate(membership.allowed, on_refused=_log_refusal)
    router = Router(authorise=membership.authorise)
    view = FleetView(
        config.name,
        VERSION,
        name_of=membership.name_of,
        is_member=membership.is_member,
        draining=lambda: active.draining,
        routing=config.routing,
    )
    pool = EnginePool(
        config.models,
        config.engine,
        config.state_dir,
        view.note_own_change,
        engines=config.engines,
        box=identity.peer_id,
        least_rate=config.routing.borrow_only_below,
    )
    node = Node(
        identity.seed,
        listen=config.net.listen,
        announce=config.net.announce,
        targets=_targets(config),
        mdns=config.net.mdns,
        gate=gate,
        router=router,
        hello=view.hello,
        events=view.events(),
        connect_timeout=config.timeouts.connect,
    )
    view.pool, view.node = pool, node
    membership.alone = lambda: not any(membership.is_member(link.peer_id) for link in node.links())
    health = Health(
        config.routing,
        pids=lambda: [held.pid for held in pool.models() if held.pid is not None],
        server_works=lambda: any(held.engine and held.running for held in pool.models()),
        on_change=view.note_own_change,
    )
    lending = lending_of(config.lend)

    def condition() -> Condition:
        closed = lending.closed(datetime.now().astimezone())
        return health.condition if closed is None else health.condition.refusing(closed.reason)

    view.condition = condition
    view.names = ModelNames(lambda: membership.replica.governance if membership.replica is not None else None).now
    view.habits = lambda: habits_of(
        membership.replica.governance.settings if membership.replica is not None else {},
        config.routing.offload,
        config.routing.substitution,
    )
    chooser = Chooser(rules_of(config.routing))
    books = Bookkeeping(config, membership, view.name_of)
    books.watch(
        node=node,
        pool=pool,
        router=router,
        gate=gate,
        active=active,
        refused=view.refused,
        mqtt=lambda: (mqtt.gauges, mqtt.counts.events),
    )
    view.record_of = books.contributions.record
    pool.share(Shares(config.lend.max_share, books.contributions.weight))
    lender = Lender(
        view, pool.generate, active, config.timeouts, lambda: view.only_borrows() or health.refusal(), lending
    )
    gossiping = Gossiping(membership, node, router)
    runner = JobRunner(view, pool.generate, active, config.timeouts, chooser)

    def link_up(link: Link) -> None:
        runner.breaker.link_up(link.peer_id)
        gossiping.link_up(link)

    view.on_link_up, view.on_link_down = link_up, gossiping.link_down
    view.before_asking = gossiping.hear_from_others
    lend = books.observer.lend(gossiping.serve_when_fresh(SCOPE_INFER, lender.handle))
    router.add(METHOD_INFER, SCOPE_INFER, lend)
    jobs = Once(books.observer.asking(runner.run))

    keeper = ModelKeeper(
        config,
        membership=membership,
        node=node,
        pool=pool,
        draining=lambda: active.draining,
        last_heard=lambda: {peer_id: seen.at for peer_id, seen in view.presence.all().items()},
        name_of=view.name_of,
    )
    keeper.offer_methods(router)
    orders = ModelOrders(config, keeper)
    own_facts = OwnFacts(
        config,
        membership,
        addrs=node.addrs,
        models=pool.models,
        learnt=gossiping.learnt,
        stored=keeper.stored,
        room=keeper.room,
        gone=keeper.gone,
    )
    keeper.on_change = own_facts.note_change

    def own_change() -> None:
        mqtt.note_change()
        own_facts.note_change()
        keeper.executor.note_change()

    view.on_own_change = own_change
    view.on_used = own_facts.accounts.note

    def warnings() -> Sequence[Warning]:
        return (
            *evaluate_copies(keeper.executor.situation, keeper.executor.actual),
            *evaluate_broker(mqtt.facts()),
            *evaluate(
                gather(
                    config,
                    node=node,
                    view=view,
                    pool=pool,
                    membership=membership,
                    knocks=gate.refusals(),
                    turned_away=floods.recent(),
                    refused_by=services.refused_by(),
                    join_problem=joining.problem,
                    clones=own_facts.clones,
                    trail=books.trail,
                )
            ),
        )

    def joined(member: str, addrs: tuple[str, ...]) -> None:
        node.keep(member, addrs)
        node.dial_now()  # whoever refused this box may no longer do so

    def document_changed(change: Change) -> None:
        if change.governance:
            node.recheck()
            view.note_document_change()
        mqtt.note_document()

    membership.subscribe(document_changed)

    materialised = Materialised(membership)
    floods = Floods(gate.counts)
    joining = Joining(
        membership, view.hello, config.timeouts.connect, joined, outcast=lambda: bool(services.refused_by())
    )
    services = AgentServices(
        config,
        view=view,
        node=node,
        pool=pool,
        active=active,
        jobs=jobs,
        routes=chooser.routes,
        gate=gate,
        router=router,
        membership=membership,
        joining=joining,
        warnings=warnings,
        books=books,
        orders=orders,
        mqtt=lambda: mqtt.facts(),
    )
    mqtt = mqtt_side(
        config.mqtt,
        Box(config.name, identity.peer_id, identity.public_key, VERSION),
        Agent(
            run=services.run,
            refused=services.not_understood,
            fleet=partial(_fleet_name, membership),
            models=services.models_shown,
            wishes=partial(_pipelines, membership),
            why_not=partial(_why_not_here, membership),
            draining=lambda: active.draining,
        ),
        config.state_dir,
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with books.open(), trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            await nursery.start(node.run)
            await nursery.start(keeper.run)
            nursery.start_soon(orders.run)
            nursery.start_soon(view.run)
            nursery.start_soon(health.run)
            await nursery.start(jobs.serve)
            nursery.start_soon(own_facts.run)
            nursery.start_soon(materialised.run)
            nursery.start_soon(keep_links, membership, node)
            nursery.start_soon(gossiping.run)
            nursery.start_soon(_take_part, membership, router)
            nursery.start_soon(joining.run)
            nursery.start_soon(floods.run)
            nursery.start_soon(mqtt.run)
            if token is not None and joining.is_due:
                joining.ask(token)
            host, port = await nursery.start(_serve_http, services, config, DocumentSocket(materialised.find), requests)
            log.info(
                "agent.ready",
                name=config.name,
                version=VERSION,
                peer_id=node.peer_id,
                http=f"http://{host}:{port}",
                addrs=list(node.addrs()),
                models=[held.name for held in pool.models()],
            )
            await _drain_on_signal(signals, active, view, config.timeouts.drain)
            active.end_now()
            with trio.move_on_after(_FAREWELL):
                await active.wait_idle()
                await requests.wait_none()
            await mqtt.stop()
            await own_facts.flush(last=True)
            await node.close_links("shutting down")
            nursery.cancel_scope.cancel()
    log.info("agent.stopped", name=config.name)


async def _take_part(membership: Membership, router: Router) -> None:
    """What only a box of a fleet does for others."""
    replica = await membership.wait_belongs()
    Doorkeeper(replica, membership.identity).offer_methods(router)


async def _fleet_name(membership: Membership) -> str:
    """What the fleet is called that this box belongs to, once it does."""
    return (await membership.wait_belongs()).genesis.name


def _pipelines(membership: Membership) -> Sequence[Wish]:
    """The sensor pipelines of the fleet document."""
    from agent.mqtt.pipeline import read_wishes  # only a box with a broker gets here

    return [] if membership.replica is None else read_wishes(membership.replica.governance.settings)


def _why_not_here(membership: Membership, wish: Wish) -> str:
    """Why a pipeline is not this box's, empty where it is."""
    if membership.replica is None:
        return "this box belongs to no fleet yet"
    return why_not(wish.terms, membership.replica.view.box(membership.identity.public_key))


async def _serve_http(
    services: AgentServices,
    config: Config,
    socket: DocumentSocket,
    requests: OpenRequests,
    *,
    task_status: TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(services, config.http, socket, requests, task_status=task_status)


async def _drain_on_signal(
    signals: AsyncIterator[int],
    active: ActiveJobs,
    view: FleetView,
    grace: float,
) -> None:
    """Wait for a signal; then take no new jobs and return when the running ones are done, at most `grace` later."""
    receiver = aiter(signals)
    number = await anext(receiver)
    log.info("agent.draining", signal=signal.Signals(number).name, jobs_running=active.running, grace_s=grace)
    active.drain()
    view.note_own_change()
    async with trio.open_nursery() as nursery:

        async def second_signal() -> None:
            await anext(receiver)
            log.warning("agent.stopping_now", jobs_running=active.running)
            nursery.cancel_scope.cancel()

        nursery.start_soon(second_signal)
        with trio.move_on_after(grace) as waiting:
            await active.wait_idle()
        if waiting.cancelled_caught:
            log.warning("agent.grace_over", jobs_running=active.running)
        nursery.cancel_scope.cancel()


def _targets(config: Config) -> dict[str, tuple[str, ...]]:
    """Configured multiaddrs by the PeerID they end in."""
    targets: dict[str, tuple[str, ...]] = {}
    for addr in config.net.peers:
        peer_id = addr.rsplit("/p2p/", 1)[1]
        targets[peer_id] = (*targets.get(peer_id, ()), addr)
    return targets


def _log_refusal(peer_id: str, direction: str, remote_addr: str) -> None:
    log.warning(
        "peer.refused",
        peer=peer_id,
        direction=direction,
        addr=remote_addr,
        remedy="invite it (shoal invite), or allow its key",
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
