"""The first words on a link: each side says who it is and how it is, at once and without waiting for the other."""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

import trio

from fleet.errors import FrameError, MessageError, PeerUnreachableError, RemoteError
from fleet.net.frames import Failure, FrameDecoder, HelloFrame, encode
from fleet.net.messages import Hello, parse

HELLO_TIMEOUT: Final = 3.0


class _Bytes(Protocol):
    async def read(self, max_bytes: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


async def greet(stream: _Bytes, hello: Hello, decoder: FrameDecoder, refused: Counter[str]) -> Hello:
    """Send our Hello and return the peer's; what follows it on the stream is left there.

    Raises PeerUnreachableError when none came within 3 s, RemoteError when the peer declined, and FrameError or
    MessageError (counted in `refused` as `bad_hello`) when what came was none. The stream is not closed here.
    """
    try:
        with trio.fail_after(HELLO_TIMEOUT):
            await stream.write(encode(HelloFrame(hello.model_dump(mode="json"))))
            return await _read_hello(stream, decoder, refused)
    except trio.TooSlowError:
        raise PeerUnreachableError("the peer did not greet within 3 s") from None


async def _read_hello(stream: _Bytes, decoder: FrameDecoder, refused: Counter[str]) -> Hello:
    """The peer's first frame, and not a byte more."""
    while True:
        # Reading no further than the frame leaves what follows it to the link's own reader.
        data = await stream.read(decoder.missing)
        if not data:
            raise PeerUnreachableError("the peer closed the connection before its greeting")
        try:
            for frame in decoder.feed(data):
                if isinstance(frame, Failure):
                    raise RemoteError(frame.code, frame.message, retryable=frame.retryable)
                if not isinstance(frame, HelloFrame):
                    raise FrameError("the first frame is not a hello")
                return parse(Hello, frame.body)
        except (FrameError, MessageError):
            refused["bad_hello"] += 1
            raise
