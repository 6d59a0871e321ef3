"""Targets that files, HTTP clients and the engine's children reach: GGUF, YAML, JSON bodies, the child's pipe."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2

from agent.config_file import parse
from agent.engine import protocol
from agent.errors import BadRequestError, ConfigError
from agent.http.errors import problem_of
from agent.http.openai_schema import Asked, parse_chat, parse_completion
from agent.http.sse import encode_json
from fleet import cbor
from fleet.identity.keys import Identity
from fleet.models.gguf import GgufError, read_facts
from fleet.net.messages import InferRequest
from fleet.net.messages import parse as parse_message
from tests.corpus.gguf.build import ARRAY, F64, STRING, U8, Raw, Tensor, array, llama, raw, text
from tests.fuzz.base import Target, check_brief
from tests.fuzz.wire import array as cbor_array

_PEER = Identity.from_seed(b"\x07" * 32).peer_id

# --- GGUF ------------------------------------------------------------------------------------------------------------


def gguf(changes: Mapping[str, Any] = {}, *, count: int | None = None, kind: int = 3) -> bytes:
    """A GGUF file of one small tensor and few tokens, so that most of its bytes are header."""
    tokens = {"tokens": ["a", "bc", ""], "scores": [0.0, 1.0, 2.0], "token_type": [1, 2, 3], "merges": ["a bc"]}
    small = {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    return (
        replace(llama(), tensors=(Tensor("token_embd.weight", (32, 3), 3),))
        .with_({**small, **changes}, count=count)
        .build()
    )


GEMMA: dict[str, Any] = {
    "general.architecture": "gemma3", "gemma3.block_count": 3, "gemma3.context_length": 256, "gemma3.expert_count": 4,
    "gemma3.embedding_length": 32, "gemma3.attention.head_count": [4, 4, 0], "gemma3.expert_used_count": 2,
    "gemma3.attention.head_count_kv": [2, 1, 0], "gemma3.attention.sliding_window": 64, "gemma3.pooling_type": 3,
    "gemma3.attention.sliding_window_pattern": [1, 0, 1], "gemma3.ssm.inner_size": 64, "gemma3.ssm.conv_kernel": 4,
}  # fmt: skip


def run_gguf(data: bytes) -> bool:
    """`gguf.read_facts` of a whole file."""
    try:
        facts = read_facts(data)
    except GgufError as error:
        check_brief(error)
        return False
    assert facts.header_bytes <= facts.data_end <= facts.file_bytes == len(data)
    assert 1 <= facts.block_count <= 512
    assert 0 < facts.parameters < 1 << 80
    assert len(facts.name) <= 128
    assert (facts.name + facts.size_label).isprintable()
    assert len(facts.kv_heads) == len(facts.windowed) == facts.block_count
    assert facts.weight_bytes <= facts.data_end - facts.header_bytes
    assert facts.experts_used <= facts.experts
    assert len(facts.tokenizer_hash) == 64
    return True


def _keys(n: int, value: Any) -> bytes:
    size = len(raw(value).data) + 24
    return gguf({f"k{i:09}": value for i in range(min(4000, n // size))})


_GGUF_STRETCH: list[Callable[[int], bytes]] = [
    lambda n: gguf({"x": b"x" * n}),
    lambda n: gguf({"x": b"\xf0\x9f\x90\x9f" + b"x" * n}),
    lambda n: gguf({"tokenizer.chat_template": b"\xf0\x9f\x90\x9f" + b"x" * n}),
    lambda n: _keys(n, b"\xf0\x9f\x90\x9f" + b"x" * 400),
    lambda n: _keys(n, 7),
    lambda n: _keys(n, array(STRING, [])),
    lambda n: gguf({"x": array(STRING, [""] * (n // 8))}),
    lambda n: gguf({"tokenizer.ggml.tokens": array(STRING, [""] * (n // 8))}),
    lambda n: gguf({"x": array(U8, bytes(n))}),
    lambda n: gguf({f"{i}.feed_forward_length": array(U8, bytes(400)) for i in range(n // 400)}),
    lambda n: gguf({"x": Raw(STRING, struct.pack("<Q", 1 << 20) + bytes(n))}),
    lambda n: gguf({"x": Raw(ARRAY, struct.pack("<IQ", F64, 1 << 20) + bytes(n))}),
    lambda n: gguf({"x": Raw(ARRAY, struct.pack("<IQ", ARRAY, 1) * (n // 12))}),
    lambda n: gguf(count=16_384) + bytes(n),
    lambda n: replace(
        llama(), tensors=[*llama().tensors, *(Tensor(f"{i:063}", (8,)) for i in range(n // 100))]
    ).build(),
    lambda n: gguf({"general.architecture": "a" * n}),
]

# --- configuration ---------------------------------------------------------------------------------------------------

CONFIG = f"""\
name: pos-1
state_dir: /var/lib/shoal
net:
  listen: [/ip4/0.0.0.0/tcp/4210]
  peers:
    - /ip4/10.0.0.7/tcp/4210/p2p/{_PEER}
  mdns: false
http:
  listen: 127.0.0.1:8420
models:
  - path: ~/models/a.gguf
    name: smollm2
engine: {{context_tokens: 2048, threads: 2, gpu_layers: -1, max_queue: 0, preload: true, load_timeout: 60.5}}
timeouts:
  connect: 1.5
log: {{level: debug, format: json}}
"""
#: Twenty problems, each with the name of a key.
MAX_CONFIG_ERROR = 8192


def run_config(data: bytes) -> bool:
    """`config_file.parse` of what a file holds; what `load` refuses before that is skipped."""
    try:
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    try:
        config = parse(source, "shoal.yaml", Path("/etc/shoal"), {})
    except ConfigError as error:
        message = str(error)
        assert 0 < len(message) <= MAX_CONFIG_ERROR
        assert message.startswith("shoal.yaml:")
        assert "JSON" not in message
        return False
    assert config.state_dir.is_absolute()
    assert all(model.path.is_absolute() for model in config.models)
    return True


_CONFIG_STRETCH: list[Callable[[int], bytes]] = [
    lambda n: b"name: " + b"x" * n,
    lambda n: b"x" * n + b": 1",
    lambda n: b"? " + b"x" * n + b"\n: 1\n? " + b"x" * n + b"\n: 2\n",
    lambda n: b"name: 1" + b":1" * (n // 2),
    lambda n: b"name: 0x" + b"f" * n,
    lambda n: b"name: 0b" + b"1" * n,
    lambda n: b"name: " + b"9" * n,
    lambda n: b"timeouts: {connect: 1" + b"0" * n + b"}",
    lambda n: b"[" * n,
    lambda n: b"".join(b"k%d: 1\n" % k for k in range(n // 8)),
    lambda n: b"net:\n  allow:\n" + b"".join(b"  - {kkey: %d}\n" % k for k in range(n // 14)),
    lambda n: b"net:\n  peers:\n" + b"  - x\n" * (n // 6),
    lambda n: b"models: [" + b"{path: a}," * (n // 10) + b"]",
    lambda n: b'name: "' + b"\\u00e9" * (n // 6) + b'"',
    lambda n: b"#" * n + b"\nname: x",
    lambda n: b"name: |\n" + b" x\n" * (n // 3),
    lambda n: b"- " * n,
    lambda n: b"a: &" + b"b" * n + b" *" + b"b" * n,
]

# --- HTTP ------------------------------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {
    "model": "smollm2", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "né"}, {"type": "text", "text": "b"}], "name": ""},
        {"role": "assistant", "content": None, "tool_calls": []},
    ],
    "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 8, "max_completion_tokens": 8,
    "temperature": 0.5, "top_p": 0, "seed": -7, "stop": "END", "n": 1, "tools": [], "logit_bias": {}, "user": "u",
    "response_format": {"type": "text"},
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "model": "smollm2", "prompt": ["hi"], "stream": False, "max_tokens": 4, "temperature": 0, "top_p": 1.0,
    "seed": 1 << 40, "stop": ["a", "b"], "echo": False, "best_of": 1, "suffix": "",
}  # fmt: skip
_HEADERS = ("x-shoal-offload", "x-shoal-on-interrupt", "traceparent")


def run_http(data: bytes) -> bool:
    """`parse_chat` and `parse_completion`: three lines of headers, then the body. What is accepted can be lent."""
    *lines, body = data.split(b"\n", 3)
    headers = {name: line.decode("latin-1") for name, line in zip(_HEADERS, lines, strict=False) if line}
    accepted = [ask for ask in (parse_chat, parse_completion) if _asked(ask, body, headers.get)]
    return bool(accepted)


def _asked(
    ask: Callable[[bytes, Callable[[str], str | None], str], Asked], body: bytes, header: Callable[[str], str | None]
) -> bool:
    try:
        asked = ask(body, header, "job-1")
    except BadRequestError as error:
        problem = problem_of(error)
        assert problem is not None
        json.loads(encode_json(problem.body()))
        return False
    infer = asked.job.request
    sent = cbor.decode(cbor2.dumps(infer.model_dump(mode="json", exclude_none=True)))
    assert parse_message(InferRequest, sent) == infer
    return True


def _http(body: bytes) -> bytes:
    return b"prefer\nresume\n00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01\n" + body


def _chat(**changes: Any) -> bytes:
    return _http(json.dumps({**CHAT, **changes}).encode())


_HTTP_STRETCH: list[Callable[[int], bytes]] = [
    lambda n: _http(b"[" * n),
    lambda n: _http(b'{"a":' * (n // 5)),
    lambda n: _http(b'{"messages":' + b"9" * n + b"}"),
    lambda n: _chat(seed=int("9" * min(n, 4300))),
    lambda n: _http(
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":' + b"9" * min(n, 4300) + b"}"
    ),
    lambda n: _http(b'{"model":"' + b"\\u00e9" * (n // 6) + b'"}'),
    lambda n: _chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * (n // 30)}]),
    lambda n: _chat(messages=[{}] * (n // 4)),
    lambda n: _chat(messages=[{"role": "user", "content": ""}] * min(1000, n // 34)),
    lambda n: _chat(stop=[""] * (n // 4)),
    lambda n: _chat(**{"x" * n: 1}),
    lambda n: _http(b"{" + b",".join(b'"k%d":1' % k for k in range(n // 8)) + b"}"),
    lambda n: _chat(logit_bias={str(k): k for k in range(n // 8)}),
    lambda n: b"x" * n + b"\n\n\n{}",
    lambda n: _http(b'{"model":"m","prompt":"' + b"\\ud83d\\udc1f" * (n // 12) + b'"}'),
]

# --- the engine's pipe -----------------------------------------------------------------------------------------------

PIPE: list[protocol.Message] = [
    protocol.Load("/m.gguf", 4096, 2, -1),
    protocol.Submit(7, "chat", (("user", "né", ""),), "", "x", 0, 0.8, 0.95, -1, ("\n\n", "END")),
    protocol.Cancel(7),
    protocol.Unload(),
    protocol.Loaded(4096, 8, 1.5, 2.0, 300.0, 0.0),
    protocol.Begun(7, 42),
    protocol.Step(((7, " a", 1, ""), (8, "", 1, "[{}]"))),
    protocol.Done(7, "length", 42, 64, 12.5, 500.0),
    protocol.Failed(7, "context_length_exceeded", "long", {"prompt_tokens": 5000}),
]


def run_pipe(data: bytes) -> bool:
    """`FrameBuffer`: the first byte is the size of the pieces; however a stream is cut, the same comes out of it."""
    if not data:
        return False
    step, stream = data[0] + 1, data[1:]
    whole = _feed([stream])
    assert _feed([stream[at : at + step] for at in range(0, len(stream), step)]) == whole
    for message in whole[0]:
        assert list(protocol.FrameBuffer().feed(protocol.encode(message))) == [message]
        assert all(math.isfinite(value) for value in vars(message).values() if isinstance(value, float))
    return whole[1] is None and bool(whole[0])


def _feed(pieces: list[bytes]) -> tuple[list[protocol.Message], str | None]:
    buffer, found = protocol.FrameBuffer(), []
    try:
        for piece in pieces:
            for message in buffer.feed(piece):
                found.append(message)
    except protocol.ProtocolError as error:
        check_brief(error)
        return found, str(error)
    return found, None


def _pipe(body: bytes) -> bytes:
    return b"\xff" + len(body).to_bytes(4, "big") + body


_PIPE_STRETCH: list[Callable[[int], bytes]] = [
    lambda n: _pipe(b"\x83\x01\x64step" + cbor_array(n, b"\x80" * n)),
    lambda n: _pipe(cbor2.dumps([1, "step", [[1, "", 1]] * (n // 4)])),
    lambda n: _pipe(cbor2.dumps([1, "failed", 1, "engine", "m", {f"k{k}": k for k in range(n // 8)}])),
    lambda n: _pipe(b"\x82\xc2\x5a" + n.to_bytes(4, "big") + b"\xff" * n + b"\x60"),
    lambda n: _pipe(b"\x81" * n),
    lambda n: _pipe(b"\x9f" * n),
    lambda n: _pipe(b"\xd8\x1c" * (n // 2)),
    lambda n: b"\xff" + b"\0\0\0\0" * (n // 4),
    lambda n: b"\xff" + (b"\0\0\0\x0c\x83\x01fcancel\x01" * (n // 16)),
]

FILES = (
    Target(
        "gguf",
        run_gguf,
        lambda: [gguf(), gguf(GEMMA), gguf(dict.fromkeys(key for key in llama().entries if key.startswith("tok")))],
        _GGUF_STRETCH,
        # Whatever the file: no multiple of its size.
        memory=0,
        memory_base=16 * 1024 * 1024,
        tokens=(
            struct.pack("<Q", 1 << 62), struct.pack("<Q", 1 << 20), b"general.alignment", struct.pack("<I", 9),
            *(struct.pack("<Q", len(key)) + key.encode() for key in GEMMA),
            text("tokenizer.ggml.tokens"), text("llama.attention.head_count"), text("llama.expert_used_count"),
        ),
    ),
    Target(
        "config",
        run_config,
        large=4 * 1024,
        seeds=lambda: [CONFIG.encode(), b"name: a\n", b"name: a\nnet:\nmodels: []\n"],
        stretch=_CONFIG_STRETCH,
        # PyYAML makes tokens, events and nodes with two positions each of every value of two characters.
        memory=1500,
        memory_base=1024 * 1024,
        tokens=(
            b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!null ", b"!!set ", b"<<: ", b"? ",
            b"&a ", b"*a", b"%YAML 1.2\n---\n", b'"\\U0010ffff"', b'"\\ud800"', b".inf", b".nan", b"0x", b"1:59",
            b"|\n ", b"2001-12-14", b"~x/", b"\xef\xbb\xbf",
        ),
    ),
    Target(
        "http",
        run_http,
        lambda: [_chat(), _http(json.dumps(COMPLETION).encode()), b'\n\n\n{"model":"m","prompt":"x"}'],
        _HTTP_STRETCH,
        memory=150,
        tokens=(*(json.dumps(key).encode() for key in (*CHAT, *COMPLETION)), b'"\\ud800"', b"1e999", b"-0.0", b"NaN"),
    ),
    Target(
        "pipe",
        run_pipe,
        lambda: [
            bytes([step]) + b"".join(protocol.encode(message) for message in some)
            for step, some in ((0, PIPE[:4]), (6, PIPE[4:]), (255, PIPE))
        ],
        _PIPE_STRETCH,
        max_len=1024,
        memory=400,
        tokens=tuple(cbor2.dumps(name) for name in ("load", "submit", "loaded", "begun", "step", "done", "failed")),
    ),
)  # fmt: skip
