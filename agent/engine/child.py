"""The agent's handle on a child process: starts it, carries its frames, sees it die, and never leaves it behind."""

from __future__ import annotations

import collections
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import trio

from agent.engine.protocol import FrameBuffer, ProtocolError, Up
from agent.engine.telling import Listener, without
from agent.engine.vitals import Vitals, vitals_of

_STDERR_KEPT: Final = 4096
_LAST_WORDS: Final = 0.2
_TERMINATE_GRACE: Final = 1.0
_KILL_GRACE: Final = 5.0


class Child:
    """One child process. `post` and `kill` return at once; `run` does the waiting and owns the process."""

    def __init__(self) -> None:
        """Start the process; raises OSError. Must be called on the main thread, see below."""
        ours, theirs = socket.socketpair()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
        environment["GGML_NO_BACKTRACE"] = "1"  # ggml's abort forks a debugger, which outlives the process
        # ggml's threads meet at a barrier some 500 times a token and by default spin there until the scheduler takes
        # the core away: where another program wants a core too, SmolLM2-135M on two threads falls from 130 tok/s to
        # 0.3. With 1000 rounds of spinning and then a futex it keeps 26, and 130 where the cores are free (300
        # rounds: 35 and 120; OMP_WAIT_POLICY=passive: 50 and 35).
        environment.setdefault("GOMP_SPINCOUNT", "1000")
        # Large pages where the kernel has them: it takes a dead process' memory apart before it tells anybody, which
        # with 930 MB in small pages was 104 ms and in large ones 37 (glibc 2.35 and newer; 2 % more memory).
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        try:
            # The child asks the kernel to be killed when its parent dies (PR_SET_PDEATHSIG), and that fires when the
            # *thread* that started it ends. So it is started here, on the thread that runs the agent, and not by
            # trio.open_process or a worker thread, which is gone after ten idle seconds and would take the child
            # along. A session of its own keeps Ctrl-C on a terminal from ending it before the agent has drained.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.engine.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._outgoing: collections.deque[bytes] = collections.deque()
        self._posted = trio.Event()
        assert self._process.stderr is not None
        self._stderr_stream = trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()
        self._stderr = b""
        self._protocol_error = ""
        self._ended_here = False
        #: Whether it was ended for what need not be its model's fault.
        self.excused = False
        #: Why conversations are not saved, by its word; empty where they are. Whoever made it may ask to be called too.
        self.unsaved = ""
        self.on_unsaved: Callable[[str], None] = lambda reason: None
        #: Set by whoever reads its messages, when it has loaded its model.
        self.loaded = trio.Event()

    def post(self, frame: bytes) -> None:
        """Queue an encoded message; it is dropped when the process is gone."""
        self._outgoing.append(frame)
        self._posted.set()

    def kill(self, *, excused: bool = False) -> None:
        """End the process now, without asking it; `run` then returns. `excused` of the first kill is as of Death."""
        if not self._ended_here:
            self._ended_here, self.excused = True, excused
        if self._process.returncode is None:
            self._process.kill()

    @property
    def ended_here(self) -> bool:
        """Whether it was this agent that killed it: it hung, or sent what is no message."""
        return self._ended_here

    def vitals(self) -> Vitals | None:
        """What the process does and has done; None where that cannot be read."""
        return vitals_of(self.pid)

    @property
    def stderr_tail(self) -> str:
        """The last 4 KiB of what it wrote to standard error, less what it told the agent there."""
        return without(self._stderr.decode("utf-8", "replace")).strip()

    @property
    def killed(self) -> bool:
        """Whether it died of a kill, by this agent or by somebody who needed the memory; for after `run`."""
        return self._process.returncode == -signal.SIGKILL

    @property
    def death(self) -> str:
        """How the process ended, in words; for after `run`."""
        code = self._process.returncode
        if self._protocol_error:
            return f"sent a malformed message ({self._protocol_error})"
        if self._ended_here:
            return "did not answer and was ended"
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = str(-code)
            return f"was ended by signal {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        return f"exited with code {code}"

    async def run(self, on_message: Callable[[Up], None]) -> None:
        """Carry messages until the process has died and been reaped; `on_message` is called for each it sends.

        Returns within milliseconds of its death. On cancel, or when `on_message` raises, the process is terminated,
        killed a second later if it still lives, and reaped before this returns.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                async with trio.open_nursery() as readers:
                    readers.start_soon(self._read_stderr)
                    readers.start_soon(self._receive, on_message)
                    await trio.lowlevel.wait_readable(self._pidfd)
                    # What it sent before it died is still to be read, and says why; its own children could hold the
                    # other ends open, so not for ever.
                    readers.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
                nursery.cancel_scope.cancel()
        finally:
            await self._end()

    async def _send(self) -> None:
        while True:
            await self._posted.wait()
            self._posted = trio.Event()
            while self._outgoing:
                left = memoryview(self._outgoing.popleft())
                try:
                    while left:
                        left = left[await self._socket.send(left) :]
                except OSError:
                    return  # it has died, which `run` is told otherwise

    async def _receive(self, on_message: Callable[[Up], None]) -> None:
        frames = FrameBuffer()
        while True:
            try:
                data = await self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            try:
                for message in frames.feed(data):
                    if not isinstance(message, Up):
                        raise ProtocolError(f"it sent a {type(message).__name__}")
                    on_message(message)
            except ProtocolError as error:
                self._protocol_error = str(error)
                self.kill()
                return

    async def _read_stderr(self) -> None:
        listener = Listener()
        while data := await self._stderr_stream.receive_some(65536):
            if (reason := listener.feed(data)) is not None:
                self.unsaved = reason
                self.on_unsaved(reason)
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]

    async def _end(self) -> None:
        with trio.CancelScope(shield=True):
            for stop, grace in ((self._process.terminate, _TERMINATE_GRACE), (self._process.kill, _KILL_GRACE)):
                if self._process.poll() is not None:
                    break
                stop()
                with trio.move_on_after(grace):
                    await trio.lowlevel.wait_readable(self._pidfd)
            self._process.poll()
            self._socket.close()
            await self._stderr_stream.aclose()
            os.close(self._pidfd)
