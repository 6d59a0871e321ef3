"""The frames of a link and their codec: u32 length, then one CBOR array, with every limit checked first.

Pure: bytes in, frozen frames out. A frame is at most 1 MiB and 64 KiB long, and its CBOR is as `fleet.cbor` limits it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import cbor2

from fleet import cbor
from fleet.errors import FrameError

#: A prompt of 1 MiB, and 64 KiB for what stands around it.
MAX_FRAME: Final = 1024 * 1024 + 64 * 1024
_MAX_TEXT: Final = 4096
_MAX_ID: Final = (1 << 53) - 1
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True)
class HelloFrame:
    """The first frame each side sends; `body` is a messages.Hello."""

    body: object


@dataclass(frozen=True)
class Call:
    """Start of a call. `id` is chosen by the caller and only ever grows on a link."""

    id: int
    method: str
    body: object


@dataclass(frozen=True)
class Event:
    """One item of a call's answer, callee to caller."""

    id: int
    body: object


@dataclass(frozen=True)
class End:
    """A call's successful end, callee to caller."""

    id: int
    body: object


@dataclass(frozen=True)
class Failure:
    """A call's unsuccessful end, callee to caller."""

    id: int
    code: str
    message: str
    retryable: bool = False
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancel:
    """The caller is no longer interested; the callee stops and answers nothing more."""

    id: int


@dataclass(frozen=True)
class Ping:
    """Keep-alive; answered by a Pong with the same nonce."""

    nonce: int


@dataclass(frozen=True)
class Pong:
    """The answer to a Ping."""

    nonce: int


@dataclass(frozen=True)
class Notify:
    """A message that has no answer."""

    topic: str
    body: object


@dataclass(frozen=True)
class Goodbye:
    """The sender is about to close the link, and why."""

    reason: str


Frame = HelloFrame | Call | Event | End | Failure | Cancel | Ping | Pong | Notify | Goodbye


def encode(frame: Frame) -> bytes:
    """One frame as bytes, length first. Raises FrameError if it would be past MAX_FRAME."""
    payload = cbor2.dumps(_to_array(frame))
    if len(payload) > MAX_FRAME:
        raise FrameError(
            f"a message of {len(payload)} bytes is past the limit of {MAX_FRAME} bytes a frame; send less at once",
            details={"bytes": len(payload), "limit_bytes": MAX_FRAME},
        )
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder:
    """Turns a byte stream into frames. Holds at most one unfinished frame and the bytes last fed.

    `payload` is what the frame that was just yielded was decoded from.
    """

    def __init__(self) -> None:
        self.payload = b""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame that `data` completes.

        Raises FrameError at the first violation; the stream is then unusable, since its framing cannot be trusted.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes is past the limit of {MAX_FRAME} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            self.payload = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode(self.payload)
            self.payload = b""

    @property
    def missing(self) -> int:
        """How many bytes at least are needed before the next step: the rest of the length, or of the payload."""
        if len(self._buffer) < _LENGTH.size:
            return _LENGTH.size - len(self._buffer)
        (length,) = _LENGTH.unpack_from(self._buffer)
        return max(1, int(length) + _LENGTH.size - len(self._buffer))

    @property
    def partial(self) -> bool:
        """True when the stream ended (or stands) in the middle of a frame."""
        return bool(self._buffer)


def decode(payload: bytes) -> Frame:
    """Decode the CBOR of one frame; raises FrameError naming what is wrong with it."""
    try:
        array = cbor.decode(payload)
    except cbor.CborError as error:
        raise FrameError(f"not a valid frame: {error}") from None
    if not isinstance(array, list) or not array or type(array[0]) is not int:
        raise FrameError("not a valid frame: expected an array that starts with its type")
    build = _FROM_ARRAY.get(array[0])
    if build is None:
        raise FrameError(f"unknown frame type {array[0] if abs(array[0]) < 1 << 32 else 'past the limit'}")
    try:
        return build(array[1:])
    except (ValueError, TypeError):
        raise FrameError(f"frame type {array[0]} has the wrong fields") from None


def _to_array(frame: Frame) -> list[object]:
    match frame:
        case HelloFrame(body):
            return [0, body]
        case Call(id, method, body):
            return [1, id, method, body]
        case Event(id, body):
            return [2, id, body]
        case End(id, body):
            return [3, id, body]
        case Failure(id, code, message, retryable, details):
            return [4, id, code[:64], message[:_MAX_TEXT], retryable, dict(details)]
        case Cancel(id):
            return [5, id]
        case Ping(nonce):
            return [6, nonce]
        case Pong(nonce):
            return [7, nonce]
        case Notify(topic, body):
            return [8, topic, body]
        case Goodbye(reason):
            return [9, reason[:_MAX_TEXT]]


def _id(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_ID:
        raise ValueError
    return value


def _text(value: object, limit: int) -> str:
    if type(value) is not str or len(value) > limit:
        raise ValueError
    return value


def _failure(fields: list[object]) -> Failure:
    id_, code, message, retryable, details = fields
    # Details end up in the JSON of an HTTP answer: no byte strings, no NaN.
    if type(retryable) is not bool or not isinstance(details, dict) or not _is_json(details):
        raise ValueError
    return Failure(_id(id_), _text(code, 64), _text(message, _MAX_TEXT), retryable, details)


def _is_json(value: object) -> bool:
    """Whether a decoded value is one that JSON has. CBOR that was decoded is not deep."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _call(fields: list[object]) -> Call:
    id_, method, body = fields
    return Call(_id(id_), _text(method, 64), body)


def _event(fields: list[object]) -> Event:
    id_, body = fields
    return Event(_id(id_), body)


def _end(fields: list[object]) -> End:
    id_, body = fields
    return End(_id(id_), body)


def _notify(fields: list[object]) -> Notify:
    topic, body = fields
    return Notify(_text(topic, 64), body)


def _single(fields: list[object]) -> object:
    (value,) = fields
    return value


_FROM_ARRAY: Final[Mapping[int, Callable[[list[object]], Frame]]] = {
    0: lambda fields: HelloFrame(_single(fields)),
    1: _call,
    2: _event,
    3: _end,
    4: _failure,
    5: lambda fields: Cancel(_id(_single(fields))),
    6: lambda fields: Ping(_id(_single(fields))),
    7: lambda fields: Pong(_id(_single(fields))),
    8: _notify,
    9: lambda fields: Goodbye(_text(_single(fields), _MAX_TEXT)),
}
