"""The main of a model's child process: one thread reads, one prepares prompts, and the main one decodes.

Started as `python -m agent.engine.worker FD PARENT_PID`; FD is its end of a socket pair. It ends when its parent does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn

import llama_cpp

from agent.engine.answers import failed, nothing_runs
from agent.engine.backends import load_backends
from agent.engine.batcher import Batcher
from agent.engine.context import AbortedError, Context, NoRoomError
from agent.engine.desk import Desk, Item
from agent.engine.embedding import Embedder, Texts, reader_of
from agent.engine.gpu import layers_for
from agent.engine.gpu_devices import can_offload, devices
from agent.engine.inbox import Inbox
from agent.engine.llama import Model
from agent.engine.memory import EMBEDDED_TOKENS
from agent.engine.prepare import Prepared, Preparer
from agent.engine.probe import probe_round, token_of, warm_up
from agent.engine.protocol import (
    Done,
    Failed,
    FrameBuffer,
    Load,
    Loaded,
    Message,
    Probe,
    Probed,
    ProtocolError,
    Stats,
    Unload,
    Up,
    encode,
)
from agent.engine.sessions import Sessions
from agent.errors import AgentError, EngineError

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = 800
_WARM_TEXT: Final = 32
#: llama.cpp has room for 256.
_MOST_SEQUENCES: Final = 128


class Sender:
    """Writes messages to the agent, one frame each, at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __call__(self, message: Up) -> None:
        """Send one message; ends the process when nobody is there to read it."""
        try:
            self._socket.sendall(encode(message))
        except OSError:
            os._exit(0)  # the agent is gone


def _read(sock: socket.socket, frames: FrameBuffer, backlog: Sequence[Message], desk: Desk) -> None:
    """The reading thread: everything that arrives goes to the desk; ends the process with the connection."""
    for message in backlog:
        desk.put(message)
    while data := _receive(sock):
        for message in _messages(frames, data):
            desk.put(message)


class Engine:
    """All that runs one model: sequences, where it generates text, and vectors."""

    def __init__(self, model: Model, load: Load, send: Sender) -> None:
        """Raises ModelLoadError."""
        self._model = model
        self._send = send
        self._context: Context | None = None
        self._batcher: Batcher | None = None
        cells, slots = max(load.cells, load.context_tokens), max(1, load.slots)
        if not load.embeddings:
            # Sequences that are over and kept need a number each; where a number costs memory there are few more.
            sequences = min(_MOST_SEQUENCES, slots + (2 if model.window or model.recurrent else slots))
            self._context = Context(
                model,
                cells=cells,
                sequences=sequences,
                threads=load.threads,
                batch=load.batch,
                flash=load.flash_attention,
            )
        context = self._context
        self._inbox: Inbox[Item] = Inbox(*((context.abort, context.resume) if context else (_nothing, _nothing)))
        sessions = _sessions(load)
        preparer = Preparer(model, load.context_tokens, sessions) if context else None
        self.desk = Desk(self._inbox, model, load.context_tokens, preparer)
        room = min(EMBEDDED_TOKENS, load.context_tokens)
        reader = reader_of(model, load, room=room)
        self._embedder = Embedder(self._inbox, send, reader, room=room, hear=self._hear)
        if context is not None:
            self._batcher = Batcher(
                model, context, self._inbox, send, cells=cells, slots=slots, sequences=sequences, sessions=sessions,
                parking=load.parking,
            )  # fmt: skip

    def warm_up(self) -> tuple[float, float]:
        """Tokens per second, of a prompt and of one token after another, from a short try; touches every weight."""
        if self._context is not None and self._batcher is not None:
            found = warm_up(self._model, self._context)
            self._batcher.expect(found[0])
            return found
        token = token_of(self._model)
        self._embedder.rate(token, 1)
        rate = self._embedder.rate(token, _WARM_TEXT)
        return rate, rate

    def _probe(self, asked: Probe) -> Probed:
        """One round, unless there is a request or one on its way."""
        context, batcher = self._context, self._batcher
        refused = Probed(asked.id, 0, 0.0, 0, 0.0)
        if self._inbox.expecting or self._embedder.busy:
            return refused
        try:
            if context is None or batcher is None:
                took = asked.prompt / self._embedder.rate(token_of(self._model), asked.prompt) * 1000
                return Probed(asked.id, asked.prompt, took, asked.prompt, took)
            prompt = min(asked.prompt, context.batch)
            seq = batcher.spare(prompt + asked.tokens)
            if seq is None:
                return refused
            found = probe_round(self._model, context, seq, prompt, asked.tokens, lambda: self._inbox.expecting)
        except (AbortedError, NoRoomError, AgentError):
            return refused
        if found is None:
            return refused
        return Probed(asked.id, prompt, found[0] * 1000, asked.tokens, found[1] * 1000)

    def run_forever(self) -> NoReturn:
        """The engine's own loop, in the main thread: steps of sequences and of texts take turns."""
        batcher, embedder = self._batcher, self._embedder
        while True:
            busy = embedder.busy or (batcher is not None and batcher.busy)
            # With nothing else to do, conversations that have gone on are put on disk.
            saving = not busy and batcher is not None and batcher.save_one()
            self._hear(wait=not (busy or saving))
            if batcher is not None:
                batcher.step()
            embedder.step(self._fail, alone=batcher is None or not batcher.busy)

    def _hear(self, *, wait: bool = False) -> None:
        """Take in what has come; with `wait`, something has. Cancels of what is still being prepared are confirmed."""
        for item in self._inbox.take(wait=wait):
            self._take(item)
        for id in self._inbox.cancelled_on_the_way():
            self._send(Done(id, "cancelled", 0, 0, 0.0, 0.0))

    def _take(self, item: Item) -> None:
        match item:
            case Prepared(job):
                if self._batcher is not None and self._inbox.take_up(job.id):
                    self._batcher.add(item)
            case Texts(job):
                if self._inbox.take_up(job.id):
                    self._embedder.add(item)
            case Failed(id):
                if self._inbox.take_up(id):
                    self._inbox.over(id)
                    self._send(item)
            case Stats(id):
                self._send(self._batcher.statistics(id) if self._batcher else nothing_runs(id))
            case Probe():
                self._send(self._probe(item))
            case Unload():
                os._exit(0)

    def _fail(self, id: int, error: AgentError) -> None:
        self._inbox.over(id)
        self._send(failed(id, error))


def _nothing() -> None:
    """There is no step that could be aborted."""


def _receive(sock: socket.socket) -> bytes:
    try:
        data = sock.recv(65536)
    except OSError:
        data = b""
    if not data:
        os._exit(0)  # the agent is gone, and nobody is left to answer
    return data


def _messages(frames: FrameBuffer, data: bytes) -> list[Message]:
    try:
        return list(frames.feed(data))
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(3)


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _bind_to_parent(parent: int) -> None:
    """Die with the agent, however it dies, and be the first to go when memory runs out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above could have told
        os._exit(0)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    except OSError as error:
        sys.stderr.write(f"oom_score_adj stays as it is: {error}\n")


def _sessions(load: Load) -> Sessions | None:
    if not load.sessions or load.session_bytes <= 0:
        return None
    return Sessions(Path(load.sessions), load.session_bytes, f"llama-cpp-python {llama_cpp.__version__}")


def main(fd: int, parent: int) -> None:
    """Load the model that the first message names, then run requests until the process is ended."""
    _bind_to_parent(parent)
    # The thread that decodes needs the interpreter for microseconds a step, whatever a template does meanwhile.
    sys.setswitchinterval(0.0005)
    sock = socket.socket(fileno=fd)
    send = Sender(sock)
    frames = FrameBuffer()
    backlog: list[Message] = []
    while not backlog:
        backlog = _messages(frames, _receive(sock))
    first, *rest = backlog
    if not isinstance(first, Load):
        sys.exit("the first message must be Load")
    began = time.perf_counter()
    load_backends()
    layers = layers_for(
        first.gpu_layers,
        offload=can_offload(),
        devices=devices(),
        blocks=first.blocks,
        weights=first.weights,
        cache=first.cache,
        compute=first.compute,
    )
    if layers:
        first = replace(first, parking=0)  # what it costs and saves was measured on CPUs
    try:
        model = Model(first.path, gpu_layers=layers)
        engine = Engine(model, first, send)
        load_ms = _ms(began)
        began = time.perf_counter()
        prefill, decode = engine.warm_up()
    except EngineError as error:
        send(failed(-1, error))
        sys.exit(1)
    send(Loaded(first.context_tokens, max(1, first.slots), load_ms, _ms(began), prefill, decode, layers))
    engine.desk.start()
    threading.Thread(target=_read, args=(sock, frames, rest, engine.desk), daemon=True).start()
    engine.run_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
