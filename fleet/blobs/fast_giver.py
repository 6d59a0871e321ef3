"""The giving end of one fast lane, in a thread of its own: asks come in, blocks go out, in the order of the asks."""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from fleet.blobs import messages as wire
from fleet.blobs.bandwidth import Bandwidth
from fleet.blobs.pins import PinError, check_pin
from fleet.errors import MessageError

#: Seconds for TLS and the token.
HANDSHAKE_LIMIT: Final = 5.0
#: Seconds without a byte going through in the middle of something, and without being asked for anything.
SILENCE: Final = 30.0
IDLE: Final = 300.0


class Giving(Protocol):
    """Where the blocks of one blob come from and who may have them; called from the threads of lanes."""

    def asked(self, peer: str, index: int) -> bool:
        """A peer asks for a block; False where it has no turn."""

    def read(self, index: int) -> bytes | None:
        """A block; None where it is not here (any more)."""

    def sent(self, peer: str, index: int, size: int) -> None:
        """A block for which `asked` was true is out; with `size` 0 it was not sent and will not be."""


@dataclass(frozen=True)
class Offer:
    """Who may come, for which blob, and how it proves that it has. `until` is in seconds of trio's clock."""

    peer: str
    blob: str
    context: ssl.SSLContext
    fingerprint: bytes
    token: bytes
    until: float


class FastGiver:
    """`run` it in a thread. `close` makes `run` return, and `dispose` comes after it; both from one thread.

    `open_giving(peer, blob)` is asked once the peer has proved itself: what it may have, or None. `refuse(reason)` is
    told why nothing came of a lane.
    """

    def __init__(
        self,
        connection: socket.socket,
        offer: Offer,
        bandwidth: Bandwidth,
        open_giving: Callable[[str, str], Giving | None],
        refuse: Callable[[str], None],
    ) -> None:
        self.peer: Final = offer.peer
        self.blob: Final = offer.blob
        self._plain = connection
        # As in `fast_lane`: what another thread may shut down is the socket below TLS.
        self._below = socket.socket(fileno=socket.dup(connection.fileno()))
        self._offer = offer
        self._bandwidth = bandwidth
        self._open = open_giving
        self._refuse = refuse
        self._closed = threading.Event()
        self._queue: deque[int] = deque()
        self._rest = b""

    def close(self) -> None:
        """End the lane, also in the middle of a block; `run` returns soon after."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._below.shutdown(socket.SHUT_RDWR)

    def dispose(self) -> None:
        """Let go of the socket."""
        self._below.close()

    def run(self) -> None:
        """Give until the other side goes or `close` is called. Blocks; what breaks ends it and is not raised."""
        try:
            connection = self._shake_hands()
            if connection is None:
                return
            with connection:
                giving = self._open(self.peer, self.blob)
                if giving is not None:
                    connection.sendall(wire.WELCOME)
                    self._give(connection, giving)
        except MessageError:
            self._refuse("protocol")
        except OSError:
            pass  # the other side went, or the lane was cut

    def _shake_hands(self) -> ssl.SSLSocket | None:
        self._plain.settimeout(HANDSHAKE_LIMIT)
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = self._offer.context.wrap_socket(self._plain, server_side=True)
        except OSError as error:
            # The certificate it showed is not the one it announced, or none.
            self._refuse("wrong_pin" if isinstance(error, ssl.SSLCertVerificationError) else "handshake")
            return None
        try:
            check_pin(connection, self._offer.fingerprint)
            token = b""
            while len(token) < wire.TOKEN and (more := connection.recv(wire.TOKEN - len(token))):
                token += more
        except (PinError, OSError) as error:
            self._refuse("wrong_pin" if isinstance(error, PinError) else "handshake")
            connection.close()
            return None
        if not hmac.compare_digest(token, self._offer.token):
            self._refuse("wrong_token")
            connection.close()
            return None
        connection.settimeout(SILENCE)
        return connection

    def _give(self, connection: ssl.SSLSocket, giving: Giving) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        try:
            while not self._closed.is_set():
                wait = 0.0 if self._queue else IDLE
                if connection.pending() or poll.poll(wait * 1000):
                    data = connection.recv(16 * 1024)
                    if not data:
                        return
                    self._take(connection, giving, data)
                elif not self._queue:
                    return  # nothing was asked for in a long time: whoever wants more opens another
                if self._queue:
                    self._send(connection, giving, self._queue.popleft())
        finally:
            for index in self._queue:
                giving.sent(self.peer, index, 0)

    def _take(self, connection: ssl.SSLSocket, giving: Giving, data: bytes) -> None:
        data = self._rest + data
        self._rest = data[len(data) - len(data) % wire.ASKED.size :]
        for word, index in wire.read_asks(data):
            if word == wire.CANCEL:
                if index in self._queue:
                    self._queue.remove(index)
                    giving.sent(self.peer, index, 0)
            elif giving.asked(self.peer, index):
                self._queue.append(index)
            else:
                connection.sendall(wire.ANSWER.pack(wire.REFUSED, index, 0))

    def _send(self, connection: ssl.SSLSocket, giving: Giving, index: int) -> None:
        size = 0
        try:
            data = giving.read(index)
            if data is None:
                connection.sendall(wire.ANSWER.pack(wire.REFUSED, index, 0))
                return
            connection.sendall(wire.ANSWER.pack(wire.BLOCK_FOLLOWS, index, len(data)))
            view = memoryview(data)
            step = self._bandwidth.slice(len(data))
            for at in range(0, len(data), step):
                part = view[at : at + step]
                if self._closed.wait(self._bandwidth.take(len(part))):
                    return
                connection.sendall(part)
            size = len(data)
        finally:
            giving.sent(self.peer, index, size)
