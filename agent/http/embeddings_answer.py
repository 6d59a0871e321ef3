"""Vectors as the OpenAI API sends them: one JSON body, written piece by piece."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Final

from agent.errors import BadRequestError
from agent.http.embeddings_schema import AskedVectors, Encoding
from agent.http.errors import Problem
from agent.http.exchange import Exchange
from agent.http.served import served_facts, served_headers
from agent.http.sse import encode_json
from agent.jobs.job import JobEvent, Routed
from agent.jobs.vectors import rows_of
from fleet.net.messages import Embedded, Finished

#: Bytes that are written at a time. 256 vectors of 16,384 numbers are 50 MB of JSON, which no other request may have to
#: wait for, and which is never in memory as a whole.
_PIECE: Final = 64 * 1024


class VectorAnswer:
    """Collects the vectors and sends the body at the end."""

    def __init__(self, exchange: Exchange, asked: AskedVectors) -> None:
        self._exchange = exchange
        self._asked = asked
        self._routed: Routed | None = None
        self._parts: list[Embedded] = []
        #: The end of the answer is on its way; the server reports the exchange as closed after that, as it should.
        self.done = False

    async def emit(self, event: JobEvent) -> None:
        """Take one event of the job; Finished sends the response. Raises BadRequestError for other dimensions."""
        match event:
            case Routed():
                self._routed = event
            case Embedded():
                self._check(event)
                self._parts.append(event)
            case Finished():
                await self._send(event)

    async def fail(self, problem: Problem) -> None:
        """Answer with an error."""
        headers = problem.headers() + (served_headers(self._routed) if self._routed is not None else [])
        await self._exchange.reply(problem.status, problem.body(), headers)

    def _check(self, event: Embedded) -> None:
        asked = self._asked.dimensions
        if asked not in (None, event.dimensions):
            raise BadRequestError(
                f"dimensions: the vectors of this model have {event.dimensions}, not {asked}; leave it out",
                details={"param": "dimensions", "dimensions": event.dimensions, "asked": asked},
            )

    async def _send(self, finished: Finished) -> None:
        served = self._routed
        if served is None:
            raise RuntimeError("a job sent vectors before it said where it runs")
        usage = {"prompt_tokens": finished.prompt_tokens, "total_tokens": finished.prompt_tokens}
        shoal = {**served_facts(served), "prefill_ms": round(finished.prefill_ms, 2)}
        tail = encode_json({"model": served.model, "usage": usage, "shoal": shoal})
        await self._exchange.start(200, "application/json", served_headers(served))
        piece = bytearray(b'{"object":"list","data":[')
        for item in items(self._parts, self._asked.encoding):
            piece += item
            if len(piece) >= _PIECE:
                await self._exchange.write(bytes(piece))
                piece.clear()
        self.done = True
        await self._exchange.end(bytes(piece) + b"]," + tail[1:])


def items(parts: list[Embedded], encoding: Encoding) -> Iterator[bytes]:
    """The entries of `data` as JSON with the commas between them, in the order of the texts."""
    index = 0
    for part in parts:
        size = 4 * part.dimensions
        for number, vector in enumerate(rows_of(part)):
            if encoding == "base64":
                shown = json.dumps(base64.b64encode(part.data[number * size : (number + 1) * size]).decode())
            else:
                # Nine digits tell any two 32-bit floats apart; Python's own text of one has seventeen.
                shown = "[" + ",".join(["%.9g" % one for one in vector]) + "]"  # noqa: UP031 - half as slow as format()
            comma = "," if index else ""
            yield f'{comma}{{"object":"embedding","index":{index},"embedding":{shown}}}'.encode()
            index += 1
