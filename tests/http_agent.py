"""The real HTTP server on a free port, over services that a test scripts; runs in a thread, so that any client fits."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from agent.config import HttpConfig
from agent.errors import AgentError, ModelBusyError
from agent.http.server import serve
from agent.http.services import Holder, ModelListing, Readiness
from agent.jobs.job import Emit, Job, Routed
from fleet.net.messages import Delta, Finished

HASH = "sha256:" + "ab" * 32
LIMIT = 20.0

Script = Callable[[Job, Emit], Awaitable[None]]


def routed(name: str = "jetson-1", *, local: bool = False) -> Routed:
    return Routed("12D3KooWpeer", name, local, "smol", HASH, 7, ("sensor-1=no model", f"{name}=served"))


def finished(tokens: int, reason: Any = "stop") -> Finished:
    return Finished(reason=reason, prompt_tokens=7, completion_tokens=tokens, prefill_ms=12.5, decode_ms=40.0)


async def hello(job: Job, emit: Emit) -> None:
    """A job that goes well: four tokens."""
    await emit(routed())
    for text in ("Hel", "lo", " ", "wörld"):
        await emit(Delta(text=text))
    await emit(finished(4))


@dataclass
class ScriptedServices:
    """Services whose jobs run `script`; remembers every job, and when one was cancelled."""

    script: Script = hello
    jobs: list[Job] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    board: Sequence[Mapping[str, object]] = ()
    trail: Sequence[bytes] = (b'{"job":"job-1"}\n', b'{"job":"job-2"}\n')
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ready: Readiness = field(default_factory=lambda: Readiness(True, ()))
    listings: Sequence[ModelListing] = (
        ModelListing(
            "smol",
            HASH,
            2048,
            (
                Holder("12D3KooWme", "sensor-1", True, "loaded", 12.0),
                Holder("12D3KooWpeer", "jetson-1", False, "idle", None),
            ),
        ),
        ModelListing("org/other", "sha256:" + "cd" * 32, 512, ()),
    )

    def models(self) -> Sequence[ModelListing]:
        return self.listings

    def meant(self, asked: str) -> str:
        return {"fast": "smol"}.get(asked, asked)

    def self_facts(self) -> Mapping[str, object]:
        return {"peer_id": "12D3KooWme", "name": "sensor-1"}

    def unload(self, model: str) -> Mapping[str, object]:
        if model != "smol":
            raise ModelBusyError(f"{model} has 1 request", details={"running": 1, "queued": 0})
        return {"model": model, "unloaded": True}

    def retry(self, model: str) -> Mapping[str, object]:
        return {"model": model, "retried": False}

    def peer_facts(self) -> Sequence[Mapping[str, object]]:
        return [{"peer_id": "12D3KooWpeer", "name": "jetson-1"}]

    def route_facts(self, job: str) -> Mapping[str, object] | None:
        return {"job": job, "decisions": []} if job == "job-1" else None

    def readiness(self) -> Readiness:
        return self.ready

    def not_understood(self, job: str, error: AgentError) -> None:
        self.refused.append((job, error.code))

    def metrics(self) -> tuple[str, bytes]:
        return "text/plain; version=0.0.4; charset=utf-8", b"# TYPE shoal_info gauge\n"

    async def audit(self, asked: Mapping[str, str], *, follow: bool) -> AsyncGenerator[bytes, None]:
        for line in self.trail:
            yield line
        if follow:
            await trio.sleep_forever()

    async def leaderboard(self) -> Sequence[Mapping[str, object]]:
        return self.board

    async def run(self, job: Job, emit: Emit) -> None:
        self.jobs.append(job)
        self.started.set()
        try:
            await self.script(job, emit)
        except trio.Cancelled:
            self.cancelled.set()
            raise


@dataclass
class Running:
    """A server that runs. `stop` cancels it and returns when it has ended, within LIMIT seconds."""

    host: str
    port: int
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def serving(services: ScriptedServices, **config: Any) -> Iterator[Running]:
    """The server as the agent starts it, listening on a free port of loopback unless `config` says otherwise."""
    http = HttpConfig(**{"listen": "127.0.0.1:0", **config})
    bound: list[tuple[str, int]] = []
    inside: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    failed: list[BaseException] = []
    up = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            bound.append(await nursery.start(lambda task_status: serve(services, http, task_status=task_status)))
            inside.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            up.set()

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    def stop() -> None:
        token, scope = inside[0]
        if worker.is_alive():
            token.run_sync_soon(scope.cancel)
        worker.join(LIMIT)
        assert not worker.is_alive(), "the server did not stop"

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    assert up.wait(LIMIT)
    if failed:
        raise failed[0]
    try:
        yield Running(*bound[0], stop)
    finally:
        stop()
    if failed:
        raise failed[0]
