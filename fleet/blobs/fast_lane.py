"""The fetching end of a fast lane: blocks over TLS on a blocking socket in a thread, away from the event loop.

A block that passes an event loop costs it a turn for every piece; here a megabyte is read into a buffer and handed to
the threads that hash and write, with the interpreter's lock given up for nearly all of it.
"""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import ssl
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from fleet.blobs import messages as wire
from fleet.blobs.errors import BlobError
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK
from fleet.blobs.pins import LaneIdentity, PinError, check_pin, fetching_context

#: Seconds for the connection, and for TLS and the token after it.
CONNECT_LIMIT: Final = 2.0
HANDSHAKE_LIMIT: Final = 5.0
#: Seconds without a byte while something is to come, after which the lane is given up.
SILENCE: Final = 30.0
#: Blocks that are being received or wait to be written, for each lane.
BUFFERS: Final = 3


class LaneError(BlobError):
    """A fast lane cannot be opened, or broke, or what came over it makes no sense; the link's own stream is left."""

    code = "fast_lane"
    retryable = True


class Work(Protocol):
    """What a lane does for a fetch; called from the lane's thread."""

    def take(self) -> tuple[list[int], list[int]]:
        """The blocks to ask for now, and those to take back."""

    def refused(self, index: int) -> None:
        """The source does not send this block."""

    def moved(self, size: int) -> None:
        """So many bytes of blocks have come."""

    def deliver(self, index: int, data: memoryview, done: Callable[[], None]) -> None:
        """A block has come; `done` is to be called, from any thread, when `data` is not needed any more."""

    def useless(self, size: int) -> None:
        """So many bytes came that nobody needs any more."""


class FastLane:
    """One lane to one source. Make it with `open_lane`; `run` it in a thread, `wake` it from any.

    `close` makes `run` return, and `dispose` comes after it; both from one thread.
    """

    def __init__(self, connection: ssl.SSLSocket, manifest: Manifest, work: Work) -> None:
        self._connection = connection
        self._manifest = manifest
        self._work = work
        # To close a TLS connection under a thread that reads it is not safe; to shut down the socket below it is.
        self._below = socket.socket(fileno=socket.dup(connection.fileno()))
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._closed = False
        self._bells = threading.Lock()
        self._asked: set[int] = set()
        self._taken_back: set[int] = set()
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._made = 0
        #: Blocks that came over it.
        self.blocks = 0

    def wake(self) -> None:
        """There may be something to ask for, or to take back."""
        # A bell that is full rings already; one that is gone has nobody to hear it.
        with self._bells, contextlib.suppress(OSError):
            self._bell.send(b"\0")

    def close(self) -> None:
        """End the lane; `run` returns soon after."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._below.shutdown(socket.SHUT_RDWR)
        self.wake()

    def run(self) -> None:
        """Ask and receive until closed. Blocks; raises LaneError when the lane breaks."""
        try:
            self._run()
        except LaneError:
            if not self._closed:
                raise
        except (OSError, ValueError) as error:
            if not self._closed:
                raise LaneError(f"the fast lane broke ({type(error).__name__})") from error
        finally:
            self._connection.close()

    def dispose(self) -> None:
        """Let go of everything. A number that is closed under another thread's hands may be another file's next."""
        with self._bells:
            for one in (self._connection, self._below, self._bell, self._ear):
                one.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._ear, select.POLLIN)
        socket_fd, ear_fd = self._connection.fileno(), self._ear.fileno()
        while not self._closed:
            self._ask()
            if not self._connection.pending():
                ready = dict(poll.poll(SILENCE * 1000))
                if ear_fd in ready:
                    self._ear.recv(4096)
                    if socket_fd not in ready:
                        continue
                if not ready:
                    if self._asked:
                        raise LaneError(f"nothing came over the fast lane for {SILENCE:.0f} s")
                    continue
            self._receive()

    def _ask(self) -> None:
        asks, cancels = self._work.take()
        if not asks and not cancels:
            return
        frames = [wire.ASKED.pack(wire.CANCEL, index) for index in cancels if index in self._asked]
        self._taken_back.update(self._asked.intersection(cancels))
        self._asked.difference_update(cancels)
        self._asked.update(asks)
        self._taken_back.difference_update(asks)
        frames += [wire.ASKED.pack(wire.ASK, index) for index in asks]
        self._connection.sendall(b"".join(frames))

    def _receive(self) -> None:
        header = memoryview(bytearray(wire.ANSWER.size))
        self._fill(header)
        word, index, size = wire.ANSWER.unpack(header)
        known = index in self._asked or index in self._taken_back
        if word == wire.REFUSED and known and size == 0:
            if index in self._asked:
                self._asked.discard(index)
                self._work.refused(index)
            self._taken_back.discard(index)
            return
        if word != wire.BLOCK_FOLLOWS or not known or size != self._manifest.block_size(index):
            raise LaneError("the other side of the fast lane broke the protocol")
        buffer = self._buffer()
        view = memoryview(buffer)[:size]
        self._fill(view, self._work.moved)
        if index in self._asked:
            self._asked.discard(index)
            self.blocks += 1
            self._work.deliver(index, view, lambda: self._free.put(buffer))
        else:
            self._taken_back.discard(index)
            self._work.useless(size)
            self._free.put(buffer)

    def _fill(self, view: memoryview, moved: Callable[[int], None] = lambda size: None) -> None:
        done = 0
        try:
            while done < len(view):
                got = self._connection.recv_into(view[done:])
                if not got:
                    raise LaneError("the other side closed the fast lane")
                done += got
        finally:
            moved(done)

    def _buffer(self) -> bytearray:
        if self._made < BUFFERS and self._free.empty():
            self._made += 1
            return bytearray(min(BLOCK, self._manifest.size))
        return self._free.get()


def open_lane(host: str, offer: wire.LaneOffer, identity: LaneIdentity, manifest: Manifest, work: Work) -> FastLane:
    """Connect to where a source offers a lane. Blocks, 7 s at most.

    Raises LaneError where nobody answers there (a firewall, an address that leads elsewhere) or our token is refused,
    and PinError where somebody else answers.
    """
    context = fetching_context(identity)
    try:
        plain = socket.create_connection((host, offer.port), CONNECT_LIMIT)
    except OSError as error:
        raise LaneError(f"port {offer.port} of the source cannot be reached ({type(error).__name__})") from error
    try:
        plain.settimeout(HANDSHAKE_LIMIT)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.sendall(offer.offer)
        connection = context.wrap_socket(plain)
    except OSError as error:
        plain.close()
        raise LaneError(f"no TLS with the source's fast lane ({type(error).__name__})") from error
    try:
        check_pin(connection, offer.fingerprint)
        connection.sendall(offer.token)
        if not hmac.compare_digest(connection.recv(len(wire.WELCOME)), wire.WELCOME):
            raise LaneError("the source's fast lane refused our token")
        connection.settimeout(SILENCE)
    except PinError:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise LaneError(f"the source's fast lane refused us ({type(error).__name__})") from error
    except LaneError:
        connection.close()
        raise
    return FastLane(connection, manifest, work)
