"""Agent processes that are forked from one which has imported what an agent imports, as tests start hundreds of them.

A process made so differs from a fresh one in this: its imports are done, which are nine tenths of the CPU time of a
start; it shares the seed of its hashes with the others; and its command line is that of this module. Its arguments,
environment, standard error, signals, memory and exit are its own. Tests of the start itself want a fresh one.

Run as a program (`python -m tests.preloaded FD`) this is the process that forks. It reads requests from the socket FD,
each a datagram with two file descriptors: where standard error goes, and a pipe for the pid and the exit code. It ends,
and every agent with it, when the other side of the socket is closed.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

#: Set by pytest alone: what measures agents wants them as users have them.
in_use = False

_NUMBER: Final = struct.Struct("<i")
_MAX_REQUEST: Final = 256 * 1024


class Process(Protocol):
    """What tests use of a `subprocess.Popen[str]` whose standard error is a pipe."""

    pid: int
    stderr: IO[str] | None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        ...

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        ...


def start(args: Sequence[str], env: Mapping[str, str], *, fresh: bool = False) -> Process:
    """Start `shoal ARGS` with `env` as its environment and a pipe as its standard error.

    It is a new interpreter where `fresh`, outside of pytest, and where `env` holds what an interpreter or the loader
    reads when it starts.
    """
    changed = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
    if fresh or not in_use or any(not name.startswith("SHOAL_") for name in changed - {"PYTHONUNBUFFERED"}):
        return subprocess.Popen(
            [sys.executable, "-m", "agent.cli.main", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
    return _forking().fork(args, env)


class _Forked:
    """A forked agent. Its exit code comes through a pipe, as it is no child of this process."""

    def __init__(self, args: Sequence[str], status: int, stderr: IO[str]) -> None:
        self.stderr: IO[str] | None = stderr
        self._args = args
        self._status = status
        self._code: int | None = None
        self._lock = threading.Lock()
        self.pid = self._read()

    def __del__(self) -> None:
        os.close(self._status)

    def _read(self) -> int:
        found = os.read(self._status, _NUMBER.size)
        if not found:
            raise RuntimeError("the process that forks agents has ended")
        return int(_NUMBER.unpack(found)[0])

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self._args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        with self._lock:
            if self._code is None and select.select([self._status], [], [], timeout)[0]:
                self._code = self._read()
            return self._code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Forking:
    """This side of the process that forks."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Too large a request is to fail here, and not in the kernel's buffers.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        theirs.close()

    def fork(self, args: Sequence[str], env: Mapping[str, str]) -> _Forked:
        """Have an agent forked; returns once it runs."""
        status, their_status = os.pipe()
        stderr, their_stderr = os.pipe()
        try:
            request = json.dumps([list(args), dict(env), str(Path.cwd())]).encode()
            socket.send_fds(self._socket, [request], [their_stderr, their_status])
        finally:
            os.close(their_status)
            os.close(their_stderr)
        return _Forked(args, status, os.fdopen(stderr, "r", encoding="utf-8", errors="replace"))

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it, and the agents that are left."""
        self._socket.close()
        self._process.wait()


_one: _Forking | None = None


def _forking() -> _Forking:
    global _one
    if _one is None or not _one.alive():
        end()
        _one = _Forking()
    return _one


def end() -> None:
    """End the process that forks, if there is one, and the agents that are left."""
    global _one
    if _one is not None:
        _one.end()
    _one = None


@dataclass(frozen=True)
class _Request:
    args: list[str]
    env: dict[str, str]
    folder: str
    stderr: int


def _serve(asked: socket.socket) -> _Request | None:
    """Fork until the other side has gone; returns in each forked process what it is to be, and None in this one."""
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                while woken.recv(4096):
                    pass
            for pid, status in list(running.items()):
                ended, how = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(how)))
                    os.close(running.pop(pid))
        if asked in ready:
            text, fds, _, _ = socket.recv_fds(asked, _MAX_REQUEST, 2)
            if not text:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return None
            args, env, folder = json.loads(text)
            stderr, status = fds
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for fd in (*running.values(), status, asked.detach(), woken.detach(), wake.detach()):
                    os.close(fd)
                return _Request(args, env, folder, stderr)
            os.write(status, _NUMBER.pack(pid))
            os.close(stderr)
            running[pid] = status


def _main() -> None:
    from agent.cli.main import main

    gc.disable()
    import agent.app
    import agent.cli.box
    import agent.config_file
    import agent.log  # noqa: F401

    # As `shoal run` does after its imports; and what nobody looks at is not copied into every process.
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, "a thread does not outlive a fork, but what it holds does"
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    os.dup2(request.stderr, 2)
    os.close(request.stderr)
    # As PYTHONUNBUFFERED makes it; the one that was inherited has noted what its file could do.
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)  # type: ignore[arg-type]
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.folder)
    sys.argv = ["shoal", *request.args]
    main()


if __name__ == "__main__":
    _main()
