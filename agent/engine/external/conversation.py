"""One job on one server: the request, the stream, and what ends it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from agent.engine.external.answer import AnswerReader
from agent.engine.external.http import Answer, Server, ask
from agent.engine.external.sse import EventStream
from agent.engine.external.trouble import ServerTroubleError
from fleet.net.messages import Delta, Finished, Started

#: Bytes of an error's body.
MAX_ERROR: Final = 64 * 1024
#: Seconds without a byte after which a server is given up, whatever the time-outs of jobs are.
_SILENCE: Final = 1800.0
#: Seconds for what may follow the end of the text: counts, and the end of the stream.
_TAIL: Final = 1.0

Put = Callable[[Started | Delta | Finished], Awaitable[None]]


class RefusedJobError(Exception):
    """The server did not take the job."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body


async def converse(server: Server, path: str, body: bytes, reader: AnswerReader, put: Put) -> None:
    """Post a job and `put` its events, Finished last; an event is put before the next byte is read.

    Raises RefusedJobError for a status other than 200, ServerRefusal for an error in the stream, ServerTroubleError
    (ConnectTroubleError) for what is no answer. Cancelling closes the connection, which ends the job there.
    """
    async with ask(server, "POST", path, body, accept="text/event-stream", silence=_SILENCE) as answer:
        if answer.status != 200:
            raise RefusedJobError(answer.status, answer.headers, await _error_body(answer))
        if answer.content_type != "text/event-stream":
            raise ServerTroubleError("answers with something that is no event stream")
        await _stream(answer, reader, put)
    for event in reader.finish():
        await put(event)


async def _stream(answer: Answer, reader: AnswerReader, put: Put) -> None:
    events = EventStream()
    while not reader.done:
        piece = None
        try:
            with trio.move_on_after(_TAIL if reader.ended else math.inf):
                piece = await answer.piece(_SILENCE)
        except ServerTroubleError:
            if not reader.ended:
                raise
        if piece is None:
            return
        for data in events.feed(piece):
            for event in reader.take(data, trio.current_time()):
                await put(event)


async def _error_body(answer: Answer) -> bytes:
    """What the server says of its refusal; nothing where that is too long or does not come."""
    try:
        with trio.move_on_after(_TAIL):
            return await answer.read(MAX_ERROR, _SILENCE)
    except ServerTroubleError:
        pass
    return b""
