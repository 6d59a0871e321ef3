"""The composition root: builds every part of one agent, starts them in order, and stops them without losing a job."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from agent.config import Config
from agent.engine.pool import EnginePool
from agent.errors import AgentError, ConfigError
from agent.fleet_view import FleetView
from agent.http.server import serve
from agent.jobs.active import ActiveJobs
from agent.jobs.lend import Lender
from agent.jobs.run import JobRunner
from agent.observe.facts import gather
from agent.observe.warnings import Warning, evaluate
from agent.services import AgentServices
from agent.version import VERSION
from fleet.errors import FleetError
from fleet.identity.keys import Identity
from fleet.net.gate import Gate
from fleet.net.messages import METHOD_INFER
from fleet.net.node import Node
from fleet.net.rpc import Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

log = structlog.get_logger("shoal")

#: The scope a peer needs to have jobs run here. With a static allow-list every allowed key has it.
SCOPE_INFER = "infer"


def run_agent(config: Config, identity: Identity) -> int:
    """Run one agent until SIGTERM or SIGINT; returns the exit code of the process.

    The first signal drains: no new jobs, running ones may finish within `timeouts.drain`, then everything stops and
    no child is left. A second signal skips the wait. An error that makes it impossible to run (a port in use, a
    state folder in use) is logged with its remedy and returns 1.
    """
    failed = False
    # What holds again once the agent no longer listens for signals: a late one must not turn a clean end into a kill.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        with _own_state_dir(config.state_dir):
            trio.run(_main, config, identity)
    except* (AgentError, FleetError, OSError) as group:
        failed = True
        for error in _leaves(group):
            log.error("agent.failed", reason=str(error))
    return 1 if failed else 0


async def _main(config: Config, identity: Identity) -> None:
    allowed = {entry.key for entry in config.net.allow}
    active = ActiveJobs()
    gate = Gate(lambda peer_id: peer_id in allowed, on_refused=_log_refusal)
    router = Router(authorise=lambda peer_id, scope: peer_id in allowed and scope == SCOPE_INFER)
    names = {entry.key: entry.name for entry in config.net.allow if entry.name}
    view = FleetView(config.name, VERSION, names, lambda: active.draining)
    pool = EnginePool(config.models, config.engine, config.state_dir, view.note_own_change)
    node = Node(
        identity.seed,
        listen=config.net.listen,
        targets=_targets(config),
        mdns=config.net.mdns,
        gate=gate,
        router=router,
        hello=view.hello,
        events=view.events(),
        connect_timeout=config.timeouts.connect,
    )
    view.pool, view.node = pool, node
    lender = Lender(view, pool.generate, active, config.timeouts)
    router.add(METHOD_INFER, SCOPE_INFER, lender.handle)
    runner = JobRunner(view, pool.generate, active, config.timeouts)

    def warnings() -> Sequence[Warning]:
        return evaluate(gather(config, node=node, view=view, pool=pool, gate=gate))

    services = AgentServices(
        config,
        view=view,
        node=node,
        pool=pool,
        active=active,
        runner=runner,
        gate=gate,
        router=router,
        warnings=warnings,
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            await nursery.start(node.run)
            nursery.start_soon(view.run)
            host, port = await nursery.start(_serve_http, services, config)
            log.info(
                "agent.ready",
                name=config.name,
                version=VERSION,
                peer_id=node.peer_id,
                http=f"http://{host}:{port}",
                addrs=list(node.addrs()),
                models=[held.name for held in pool.models()],
            )
            await _drain_on_signal(signals, active, node, view, config.timeouts.drain)
            await node.close_links("shutting down")
            nursery.cancel_scope.cancel()
    log.info("agent.stopped", name=config.name)


async def _serve_http(
    services: AgentServices,
    config: Config,
    *,
    task_status: TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(services, config.http, task_status=task_status)


async def _drain_on_signal(
    signals: AsyncIterator[int],
    active: ActiveJobs,
    node: Node,
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


@contextmanager
def _own_state_dir(state_dir: Path) -> Iterator[None]:
    """Make the state folder (0700) and lock it: two agents with one identity would contradict each other."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    state_dir.chmod(0o700)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another agent is using {state_dir}; stop it, or give this one its own state_dir"
            ) from None
        yield
    finally:
        os.close(lock)


def _targets(config: Config) -> dict[str, tuple[str, ...]]:
    """Configured multiaddrs by the PeerID they end in."""
    targets: dict[str, tuple[str, ...]] = {}
    for addr in config.net.peers:
        peer_id = addr.rsplit("/p2p/", 1)[1]
        targets[peer_id] = (*targets.get(peer_id, ()), addr)
    return targets


def _log_refusal(peer_id: str, direction: str, remote_addr: str) -> None:
    log.warning("peer.refused", peer=peer_id, direction=direction, addr=remote_addr, remedy="add its key to net.allow")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
