"""Targets that a peer reaches over a link or the LAN: CBOR, frames, messages, refusals, addresses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import cbor2

from agent.http.errors import problem_of
from agent.http.sse import encode_json
from agent.jobs.failure import of_peer
from fleet import cbor
from fleet.errors import FrameError, IdentityError, MessageError, RemoteError
from fleet.identity.keys import Identity, peer_id_from_public_key, public_key_from_peer_id
from fleet.net import frames, messages
from fleet.net.discovery import MAX_ADDRS, parse_addresses
from tests.fuzz.base import Target, check_brief

_HASH = "sha256:" + "ab" * 32
_PEER = Identity.from_seed(b"\x07" * 32).peer_id

VALUES: list[object] = [
    None, True, 0, -1, 23, 24, 1 << 32, (1 << 64) - 1, -(1 << 64), 1.5, -0.0, math.inf, math.nan, "", "né", b"",
    b"\xff" * 40, [], {}, [1, [2, [3, [4]]]], {"a": {"b": [1.5, None]}, b"k": b"v"}, ["x" * 300] * 3,
]  # fmt: skip
PRESENCE: dict[str, object] = {
    "v": 1, "seq": 7, "name": "pos-1", "version": "0.1.0", "state": "serving", "cpu": 0.25, "memory": 0.5,
    "models": [
        {"hash": _HASH, "name": "smollm2", "state": "loaded", "context_tokens": 2048, "decode_rate": 12.5,
         "prefill_rate": None, "running": 1, "queued": 0, "slots": 2},
    ],
}  # fmt: skip
_HELD = messages.parse(messages.Presence, PRESENCE).models[0]
HELLO: dict[str, object] = {"name": "pos-1", "version": "0.1.0", "presence": PRESENCE}
INFER: dict[str, object] = {
    "v": 1, "job": "job-1", "kind": "chat", "model": "smollm2", "messages": [{"role": "user", "content": "hi"}],
    "prompt": "", "prefix": "", "route": [_PEER], "traceparent": None,
    "sampling": {"max_tokens": 8, "temperature": 0.0, "top_p": 1.0, "seed": 7, "stop": ["\n"]},
}  # fmt: skip
EMBED: dict[str, object] = {
    "v": 2, "job": "job-2", "kind": "embedding", "model": "smollm2", "texts": ["hi"], "pooling": "mean",
    "route": [_PEER],
}  # fmt: skip
_REQUEST = messages.parse(messages.InferRequest, INFER)
EVENTS: list[dict[str, object]] = [
    {"type": "started", "model": "smollm2", "hash": _HASH, "prompt_tokens": 3},
    {"type": "delta", "text": "né", "tokens": 1},
    {"type": "embedded", "first": 1, "dimensions": 2, "data": b"\0\0\x80?\0\0\0\x80"},
    {"type": "finished", "reason": "stop", "prompt_tokens": 3, "completion_tokens": 4, "prefill_ms": 1.5,
     "decode_ms": 9.25},
]  # fmt: skip
FRAMES: list[frames.Frame] = [
    frames.HelloFrame(HELLO),
    frames.Call(1, "infer", INFER),
    frames.Event(1, EVENTS[1]),
    frames.End(1, {}),
    frames.Failure(1, "overloaded", "busy", True, {"retry_after": 3}),
    frames.Cancel(1),
    frames.Ping(9),
    frames.Pong(9),
    frames.Notify("presence", PRESENCE),
    frames.Goodbye("bye"),
]


def is_plain(value: object) -> bool:
    """Whether a value is what `fleet.cbor` promises: plain types all the way down."""
    if isinstance(value, list):
        return type(value) is list and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(type(key) in (str, bytes) and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str, bytes)


def run_cbor(data: bytes) -> bool:
    """`cbor.decode` and `cbor.decode_canonical`: plain values, and one encoding for each."""
    try:
        value = cbor.decode(data)
    except cbor.CborError:
        assert not _is_canonical(data)
        return False
    assert is_plain(value)
    again = cbor.encode(value)
    del value
    assert cbor.encode(cbor.decode_canonical(again)) == again
    assert _is_canonical(data) is (again == data)
    return True


def _is_canonical(data: bytes) -> bool:
    try:
        cbor.decode_canonical(data)
    except cbor.CborError:
        return False
    return True


def run_frame(data: bytes) -> bool:
    """`frames.decode` of one payload."""
    try:
        frame = frames.decode(data)
    except FrameError as error:
        check_brief(error)
        return False
    wire = frames.encode(frame)
    assert frames.encode(frames.decode(wire[4:])) == wire
    return True


def run_frames(data: bytes) -> bool:
    """`FrameDecoder`: the first byte is the size of the pieces; however a stream is cut, the same comes out of it."""
    if not data:
        return False
    step, stream = data[0] + 1, data[1:]
    whole = _feed([stream])
    assert _feed([stream[at : at + step] for at in range(0, len(stream), step)]) == whole
    assert _feed_as_asked(stream) == whole
    return whole[1] is None and bool(whole[0])


def _feed(pieces: Sequence[bytes]) -> tuple[list[bytes], str | None]:
    decoder, found = frames.FrameDecoder(), []
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                found.append(frames.encode(frame))
            assert decoder.missing >= 1
    except FrameError as error:
        return found, str(error)
    return found, None


def _feed_as_asked(stream: bytes) -> tuple[list[bytes], str | None]:
    """As a link reads: never more than the decoder says is missing."""
    decoder, found, at = frames.FrameDecoder(), [], 0
    try:
        while at < len(stream):
            piece = stream[at : at + decoder.missing]
            at += len(piece)
            for frame in decoder.feed(piece):
                found.append(frames.encode(frame))
    except FrameError as error:
        return found, str(error)
    return found, None


_KINDS = (messages.Hello, messages.Presence, messages.InferRequest)


def run_message(data: bytes) -> bool:
    """`messages.parse` and `parse_infer_event` of any CBOR; what is accepted can be sent on."""
    try:
        body = cbor.decode(data)
    except cbor.CborError:
        return False
    accepted = False
    for kind in _KINDS:
        try:
            message = messages.parse(kind, body)
        except MessageError as error:
            check_brief(error)
            continue
        accepted = True
        sent = cbor.decode(cbor2.dumps(message.model_dump(mode="json", exclude_none=True)))
        assert messages.parse(kind, sent) == message
    try:
        event = messages.parse_infer_event(body)
    except MessageError as error:
        check_brief(error)
        return accepted
    assert messages.parse_infer_event(cbor.decode(cbor2.dumps(event.model_dump()))) == event
    return True


def run_refusal(data: bytes) -> bool:
    """A peer's Failure as this box's client gets it: always an HTTP error with headers and strict JSON."""
    try:
        frame = frames.decode(data)
    except FrameError:
        return False
    if not isinstance(frame, frames.Failure):
        return False
    error = RemoteError(frame.code, frame.message, retryable=frame.retryable, details=frame.details)
    failure = of_peer(error, _REQUEST, _HELD)
    assert failure.retry_after is None or (type(failure.retry_after) is int and 0 <= failure.retry_after <= 86_400)
    for raised in (error, failure.final, failure.claim):
        problem = problem_of(raised) if raised is not None else None
        if problem is not None:
            body = encode_json(problem.body())
            json.loads(body, parse_constant=_no_constant)
            assert all(value.isascii() and value.isprintable() for _, value in problem.headers())
    return True


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def run_peer_id(data: bytes) -> bool:
    """`public_key_from_peer_id` of any text, lone surrogates too."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        key = public_key_from_peer_id(text)
    except IdentityError:
        return False
    assert peer_id_from_public_key(key) == text
    return True


def run_dnsaddr(data: bytes) -> bool:
    """`parse_addresses` of the TXT entries of an mDNS record, one a line."""
    found = parse_addresses(data.split(b"\n"))
    if found is None:
        return False
    peer_id, addrs = found
    assert 0 < len(addrs) <= MAX_ADDRS
    assert all(addr.endswith("/p2p/" + peer_id) for addr in addrs)
    return True


def _dnsaddr_seeds() -> list[bytes]:
    """Records as py-libp2p and others send them."""
    tail = b"/p2p/" + _PEER.encode()
    v4, v6 = b"/ip4/192.168.1.20/tcp/4210" + tail, b"/ip6/fd00::1/tcp/4210" + tail
    return [v4, v6, v4 + b"\n" + v6, b"x\n" + v4 + b"\n/dns4/a/tcp/1" + tail]


def array(count: int, items: bytes) -> bytes:
    """A CBOR array of a stated length, which may be a lie."""
    return b"\x9a" + count.to_bytes(4, "big") + items


def cbor_stretch(prefix: bytes = b"") -> list[Callable[[int], bytes]]:
    """CBOR that is small on the wire and large or slow once decoded, or that says it were."""
    return [
        lambda n: prefix + array(n, b"\x80" * n),
        lambda n: prefix + array(n, b"\xa0" * n),
        lambda n: prefix + array(n // 3, b"\x81\x81\x80" * (n // 3)),
        lambda n: prefix + array(n // 2, b"\x61\xff" * (n // 2)),
        lambda n: prefix + array(n, b"\xf9" * n),
        lambda n: prefix + b"\xba" + (n // 6).to_bytes(4, "big") + b"".join(b"\x64%04x\x00" % k for k in range(n // 6)),
        lambda n: prefix + b"\x81" * n,
        lambda n: prefix + b"\xa1\x60" * (n // 2),
        lambda n: prefix + array((1 << 32) - 1, b"\x00" * n),
        lambda n: prefix + b"\x5b" + b"\x7f" * 8 + b"\x00" * n,
        lambda n: prefix + b"\xc2\x5a" + n.to_bytes(4, "big") + b"\xff" * n,
        lambda n: prefix + b"\x7a" + n.to_bytes(4, "big") + b"\xf0\x9f\x90\x9f" * (n // 4),
        lambda n: prefix + b"\x9f" + b"\x00" * n + b"\xff",
    ]


def _framed(n: int, item: bytes) -> bytes:
    return b"\xff" + (len(item).to_bytes(4, "big") + item) * (n // (len(item) + 4))


_MESSAGE_TOKENS = tuple(
    cbor2.dumps(text)
    for text in (
        *PRESENCE, *HELLO, *INFER, "decode_rate", "context_tokens", "role", "content", "max_tokens",
        "temperature", "stop", "chat", "completion", "user", "system", "tool", "loaded", "draining", "length", "delta",
        "started", "finished", "embedded", "embedding", "texts", "pooling", "first", "dimensions", "data",
    )
)  # fmt: skip


def _failures() -> list[bytes]:
    codes = ("overloaded", "bad_request", "context_length_exceeded", "loop_detected", "internal", "denied", "no_such")
    details: list[dict[str, object]] = [
        {}, {"retry_after": 3}, {"prompt_tokens": 5000, "context_tokens": 4096},
        {"param": "x", "l": [1, "a", 2.5, None]},
    ]  # fmt: skip
    return [cbor2.dumps([4, 1, code, "why", True, detail]) for code in codes for detail in details]


WIRE = (
    Target(
        "cbor",
        run_cbor,
        lambda: [cbor.encode(value) for value in VALUES],
        cbor_stretch(),
        # A value and, beside it, what checks it.
        memory=120,
        tokens=(b"\x9b", b"\xbb", b"\x5b", b"\x7b", b"\xd8\x1c", b"\xd8\x1d\x00", b"\xc2", b"\xf9\x7e\x00", b"\xf7"),
    ),
    Target("frame", run_frame, lambda: [frames.encode(frame)[4:] for frame in FRAMES], cbor_stretch(b"\x82\x08")),
    Target(
        "frames",
        run_frames,
        lambda: [
            bytes([step]) + b"".join(frames.encode(frame) for frame in some)
            for step, some in ((0, FRAMES[5:8]), (6, FRAMES), (255, FRAMES[:2]))
        ],
        [
            lambda n: _framed(n, b"\x82\x06\x01"),
            lambda n: _framed(n, b"\x82\x05\x01"),
            lambda n: b"\x00" + frames.encode(frames.Event(1, b"x" * n)),
            lambda n: b"\x00\x00\x10\x00\x00" + bytes(n),
            lambda n: b"\x03" + b"\xff" * n,
        ],
        max_len=512,
        # Three decoders, and every frame that was found, kept.
        memory=300,
    ),
    Target(
        "message",
        run_message,
        lambda: [
            cbor2.dumps(value) for value in (HELLO, PRESENCE, INFER, EMBED, {**INFER, "kind": "completion"}, *EVENTS)
        ],
        [
            *cbor_stretch(),
            lambda n: cbor2.dumps({**PRESENCE, "models": [{}] * n}),
            lambda n: cbor2.dumps({**INFER, "messages": [{}] * n}),
            lambda n: cbor2.dumps({**INFER, "messages": [{"role": "user", "content": ""}] * min(1024, n // 20)}),
            lambda n: cbor2.dumps({**EMBED, "texts": [0] * n}),
            lambda n: cbor2.dumps({**INFER, "prompt": "x" * n, "route": ["y"] * n}),
            lambda n: cbor2.dumps({**INFER, "sampling": {"seed": "9" * n}}),
            lambda n: cbor2.dumps({"type": "x" * n}),
            lambda n: cbor2.dumps({**EVENTS[1], "tokens": "9" * n}),
            lambda n: cbor2.dumps({f"k{i}": i for i in range(n // 8)}),
        ],
        memory=150,
        tokens=_MESSAGE_TOKENS,
    ),
    Target(
        "refusal",
        run_refusal,
        _failures,
        [
            lambda n: cbor2.dumps([4, 1, "bad_request", "m", True, {"a": "x" * n}]),
            lambda n: cbor2.dumps([4, 1, "bad_request", "m", True, {"a": [[]] * n}]),
            lambda n: cbor2.dumps([4, 1, "overloaded", "m", True, {f"k{i}": i for i in range(n // 8)}]),
        ],
        memory=200,
    ),
    Target("peer_id", run_peer_id, lambda: [_PEER.encode()], [lambda n: b"1" * n, lambda n: b"z" * n], max_len=128),
    Target(
        "dnsaddr",
        run_dnsaddr,
        _dnsaddr_seeds,
        [lambda n: b"\n" * n, lambda n: b"/" * n, lambda n: b"\n".join(_dnsaddr_seeds()[:1] * (n // 80))],
        max_len=1024,
        tokens=(b"/ip6/::ffff:1.2.3.4/tcp/", b"%eth0", b"/tcp/065536", b"/p2p/"),
    ),
)
