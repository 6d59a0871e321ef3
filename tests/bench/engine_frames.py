"""The main of a child process that decodes nothing: it sends steps that say when they were made."""

from __future__ import annotations

import socket
import sys
import time

from agent.engine.protocol import Done, Step, encode
from tests.bench.engine_latency import FRAMES

_STEP = 0.008
_SEQUENCES = 16


def main(fd: int) -> None:
    """Send FRAMES steps, then the end of the first sequence, and wait to be ended."""
    sock = socket.socket(fileno=fd)
    others = tuple((id, " word", 1, "") for id in range(1, _SEQUENCES))
    for _ in range(FRAMES):
        time.sleep(_STEP)  # the decoding that it stands for
        sock.sendall(encode(Step(((0, str(time.perf_counter_ns()), 1, ""), *others))))
    sock.sendall(encode(Done(0, "length", 1, FRAMES, 0.0, 0.0)))
    sock.recv(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
