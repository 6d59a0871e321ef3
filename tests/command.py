"""The `shoal` command run in this process, for tests whose point is not the process.

A process of its own costs half a second of imports; what a command reads, writes, prints and ends with is the same
here. What a process alone shows (signals, terminals, pipes that close, what is imported) wants a real one.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from agent.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and all it wrote on standard output and standard error."""

    code: int
    out: str
    err: str


def run_shoal(
    args: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Ended:
    """Run `shoal ARGS` with this standard input, in this folder, with `env` as the whole environment.

    The environment is this process's where `env` is None, without what would configure Shoal. An exception that a
    process would end in a traceback with is raised.
    """
    if env is None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    # As an interpreter sets its streams up for UTF-8: what it reads may be no text.
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8", errors="surrogateescape")
    streams = [io.TextIOWrapper(_Kept(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace")]
    code = 0
    with (
        mock.patch.multiple(sys, argv=["shoal", *args], stdin=given, stdout=streams[0], stderr=streams[1]),
        mock.patch.dict(os.environ, env, clear=True),
        contextlib.chdir(folder or Path.cwd()),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        for stream in streams:
            if not stream.closed:
                stream.flush()
    out, err = (stream.buffer.written() for stream in streams)  # type: ignore[attr-defined]
    return Ended(code, out.decode(), err.decode())


class _Kept(io.BytesIO):
    """Bytes that can be read after a command has closed its stream."""

    def __init__(self) -> None:
        super().__init__()
        self._last = b""

    def close(self) -> None:
        if not self.closed:
            self._last = self.getvalue()
        super().close()

    def written(self) -> bytes:
        """All that was written."""
        return self._last if self.closed else self.getvalue()
