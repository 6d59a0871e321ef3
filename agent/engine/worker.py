"""The main of a model's child process: reads requests in a thread, runs sequences one at a time, tells each token.

Started as `python -m agent.engine.worker FD PARENT_PID`; FD is its end of a socket pair. It ends when its parent does.
"""

from __future__ import annotations

import collections
import ctypes
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

from agent.engine.chat import ChatTemplate, Shield, Span
from agent.engine.llama import BATCH, AbortedError, Model
from agent.engine.protocol import (
    Begun,
    Cancel,
    Done,
    Failed,
    FrameBuffer,
    Load,
    Loaded,
    Message,
    ProtocolError,
    Step,
    Submit,
    Unload,
    Up,
    encode,
)
from agent.engine.text import TextAssembler
from agent.errors import AgentError, BadRequestError, ContextLengthError, EngineError

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = 800
_PROBE_PROMPT: Final = 32
_PROBE_TOKENS: Final = 8
_PROBE_LIMIT: Final = 0.5


class Inbox:
    """Requests as the reading thread finds them; the reading thread writes, the main thread takes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: collections.deque[Submit] = collections.deque()
        self._cancelled: set[int] = set()
        self._running: int | None = None
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        """Take in a request; a Cancel of the running sequence reaches into its decoding step."""
        with self._changed:
            match message:
                case Submit():
                    self._waiting.append(message)
                case Cancel(id) if id == self._running or any(job.id == id for job in self._waiting):
                    self._cancelled.add(id)
                    if id == self._running:
                        self._model.abort()
            self._changed.notify()

    def take(self) -> Submit:
        """Wait for the next request, which is then the running one."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            job = self._waiting.popleft()
            self._running = job.id
            return job

    def cancelled(self, job: Submit) -> bool:
        """Whether the running job has been cancelled."""
        return job.id in self._cancelled

    def end(self, job: Submit) -> None:
        """The running job is over; a later abort does not concern the next one."""
        with self._changed:
            self._running = None
            self._cancelled.discard(job.id)
            self._model.resume()


class Runner:
    """Runs one sequence after another on a loaded model."""

    def __init__(self, model: Model, inbox: Inbox, send: Sender) -> None:
        self._model = model
        self._inbox = inbox
        self._send = send
        self._control = model.control_texts()
        self._template = ChatTemplate(
            model.chat_template, bos=model.bos_text, eos=model.eos_text, native=model.native_template
        )

    def run_forever(self) -> NoReturn:
        """Take and run requests until the process ends."""
        while True:
            job = self._inbox.take()
            try:
                end = self._run(job)
            except AgentError as error:
                end = _failed(job.id, error)
            finally:
                self._model.clear()
                self._inbox.end(job)
            self._send(end)

    def _run(self, job: Submit) -> Up:
        prompt = self._prompt(job)
        limit = self._model.context_tokens - len(prompt)
        if limit < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and the model's context {self._model.context_tokens};"
                " shorten the prompt",
                details={"prompt_tokens": len(prompt), "context_tokens": self._model.context_tokens},
            )
        if not prompt:
            raise BadRequestError("the prompt is empty", details={"param": "prompt"})
        self._send(Begun(job.id, len(prompt)))
        limit = min(limit, job.max_tokens or limit)
        began = time.perf_counter()
        if not self._prefill(job, prompt):
            return Done(job.id, "cancelled", len(prompt), 0, _ms(began), 0.0)
        prefill = _ms(began)
        began = time.perf_counter()
        reason, count = self._generate(job, limit)
        return Done(job.id, reason, len(prompt), count, prefill, _ms(began))

    def _prompt(self, job: Submit) -> list[int]:
        shield = Shield(self._control)
        if job.kind == "completion":
            # A completion's prompt is the whole prompt as its author wants it, control tokens included.
            return self._model.tokenize([Span(job.prompt), *shield.spans(shield.cover(job.prefix))])
        covered = [(role, shield.cover(content)) for role, content, _ in job.messages]
        rendered = self._template.render(covered) + shield.cover(job.prefix)
        return self._model.tokenize(shield.spans(rendered))

    def _prefill(self, job: Submit, prompt: Sequence[int]) -> bool:
        """Decode the prompt; False when the job was cancelled meanwhile."""
        return all(self._decode(job, prompt[at : at + BATCH]) for at in range(0, len(prompt), BATCH))

    def _decode(self, job: Submit, tokens: Sequence[int]) -> bool:
        if self._inbox.cancelled(job):
            return False
        try:
            self._model.decode(tokens)
        except AbortedError:
            return False
        return True

    def _generate(self, job: Submit, limit: int) -> tuple[Literal["stop", "length", "cancelled"], int]:
        """Sample until the end; returns why it ended and how many tokens there were."""
        model, text = self._model, TextAssembler(job.stop)
        seed = job.seed if job.seed >= 0 else random.SystemRandom().getrandbits(32)
        sampler = model.sampler(temperature=job.temperature, top_p=job.top_p, seed=seed)
        count = 0
        reason: Literal["stop", "length"] = "length"
        try:
            while True:
                token = sampler.sample()
                if model.ends_text(token):
                    reason = "stop"
                    break
                count += 1
                # Sent before the next token is computed: a token that is ready waits for nothing.
                self._send(Step(((job.id, text.push(model.piece(token)), 1, ""),)))
                if text.stopped:
                    return "stop", count
                if count >= limit:
                    break
                if not self._decode(job, [token]):
                    return "cancelled", count
        finally:
            sampler.close()
        if rest := text.finish():
            self._send(Step(((job.id, rest, 0, ""),)))
        return ("stop" if text.stopped else reason), count


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


def probe(model: Model) -> tuple[float, float]:
    """Touch every weight once, then measure: tokens per second of a short prefill and of a few decoding steps."""
    token = max(model.tokenize([Span("the")])[-1:], default=0)
    model.decode([token])
    model.clear()
    began = time.perf_counter()
    model.decode([token] * min(_PROBE_PROMPT, model.context_tokens // 2))
    prefill = min(_PROBE_PROMPT, model.context_tokens // 2) / (time.perf_counter() - began)
    sampler = model.sampler(temperature=0, top_p=1, seed=0)
    began = time.perf_counter()
    count = 0
    while count < _PROBE_TOKENS and time.perf_counter() - began < _PROBE_LIMIT:
        model.decode([sampler.sample()])
        count += 1
    sampler.close()
    decode = count / (time.perf_counter() - began)
    model.clear()
    return prefill, decode


def _read(sock: socket.socket, frames: FrameBuffer, backlog: Sequence[Message], inbox: Inbox) -> None:
    """The reading thread: everything that arrives goes to the inbox; ends the process with the connection."""
    for message in backlog:
        inbox.put(message)
    while data := _receive(sock):
        for message in _messages(frames, data):
            if isinstance(message, Unload):
                os._exit(0)
            inbox.put(message)


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


def _failed(id: int, error: AgentError) -> Failed:
    code = error.code if error.code in ("bad_request", "context_length_exceeded", "model_load") else "engine"
    details = {key: value for key, value in error.details.items() if isinstance(value, int)}
    return Failed(id, code, error.message, details)  # type: ignore[arg-type]  # narrowed by the line above


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


def main(fd: int, parent: int) -> None:
    """Load the model that the first message names, then run requests until the process is ended."""
    _bind_to_parent(parent)
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
    try:
        model = Model(
            first.path, context_tokens=first.context_tokens, threads=first.threads, gpu_layers=first.gpu_layers
        )
        load_ms = _ms(began)
        began = time.perf_counter()
        prefill, decode = probe(model)
        inbox = Inbox(model)
        runner = Runner(model, inbox, send)
    except EngineError as error:
        send(_failed(-1, error))
        sys.exit(1)
    send(Loaded(first.context_tokens, 1, load_ms, _ms(began), prefill, decode))
    threading.Thread(target=_read, args=(sock, frames, rest, inbox), daemon=True).start()
    runner.run_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
