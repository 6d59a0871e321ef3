"""The MQTT side of a box, over a scripted agent, in a thread of its own: as the agent runs it, without the rest."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from agent.config import MqttConfig
from agent.errors import AgentError
from agent.jobs.job import Emit, Job, Routed
from agent.mqtt.around import Agent, Box
from agent.mqtt.pipeline import Wish
from agent.mqtt.room import MqttRoom
from agent.mqtt.topics import Topics, node_of
from fleet.net.messages import Delta, Finished

HASH = "sha256:" + "ab" * 32
LIMIT = 30.0

Script = Callable[[Job, Emit], Awaitable[None]]


def routed(job: Job) -> Routed:
    """Where a scripted job runs."""
    route = ("till-1=no model", "jetson-1=served")
    return Routed("12D3KooWpeer", "jetson-1", False, job.request.model, HASH, 7, route)


async def hello(job: Job, emit: Emit) -> None:
    """A job that goes well: three tokens."""
    await emit(routed(job))
    for text in ("Yes", ", it ", "is."):
        await emit(Delta(text=text))
    await emit(Finished(reason="stop", prompt_tokens=7, completion_tokens=3, prefill_ms=1.5, decode_ms=4.0))


@dataclass
class MqttBox:
    """One box. `script` is what runs its jobs; `jobs` are those it was given, `refused` those it was not."""

    name: str
    broker_url: str
    folder: Path
    script: Script = hello
    config: dict[str, Any] = field(default_factory=dict)
    wishes: Sequence[Wish] = ()
    why_not: Callable[[Wish], str] = lambda wish: ""
    models: Sequence[Mapping[str, object]] = ({"name": "smol", "here": False, "state": "loaded"},)
    jobs: list[Job] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    room: MqttRoom | None = None

    @property
    def topics(self) -> Topics:
        return Topics("shops", self.node)

    @property
    def public_key(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()

    @property
    def node(self) -> str:
        return node_of(self.public_key)

    async def run_job(self, job: Job, emit: Emit) -> None:
        self.jobs.append(job)
        try:
            await self.script(job, emit)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    def not_understood(self, job: str, error: AgentError) -> None:
        self.refused.append((job, error.code))

    def make(self) -> MqttRoom:
        """The MQTT side, to be run."""

        async def fleet() -> str:
            await trio.lowlevel.checkpoint()
            return "shops"

        agent = Agent(
            run=self.run_job,
            refused=self.not_understood,
            fleet=fleet,
            models=lambda: self.models,
            wishes=lambda: self.wishes,
            why_not=self.why_not,
            draining=lambda: False,
        )
        self.room = MqttRoom(
            MqttConfig(url=self.broker_url, **self.config),
            Box(self.name, f"12D3KooW{self.name}", self.public_key, "1.0"),
            agent,
            self.folder / self.name,
        )
        return self.room

    @property
    def counts(self) -> Mapping[str, int]:
        assert self.room is not None
        return self.room.counts.events


@contextmanager
def running(*boxes: MqttBox, connected: bool = True) -> Iterator[None]:
    """Boxes that run, and are connected; a clean end where the block ends well, as by a kill where it does not."""
    inside: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    failed: list[BaseException] = []
    up = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for box in boxes:
                nursery.start_soon(box.make().run)
            inside.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            with trio.fail_after(LIMIT):
                while connected and not all(box.room is not None and box.room.gauges.connected for box in boxes):
                    await trio.sleep(0.005)
            up.set()

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    async def end() -> None:
        for box in boxes:
            assert box.room is not None
            await box.room.stop()
        inside[0][1].cancel()

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    assert up.wait(2 * LIMIT)
    clean = False
    try:
        if not failed:
            yield
            clean = True
    finally:
        if worker.is_alive():
            token, scope = inside[0]
            if clean:
                trio.from_thread.run(end, trio_token=token)
            else:
                token.run_sync_soon(scope.cancel)
        worker.join(LIMIT)
        assert not worker.is_alive(), "the boxes did not stop"
    if failed:
        raise failed[0]
