"""Schemas against values that are right but for one to three things: types, limits, missing and strange fields."""

from __future__ import annotations

import json
import struct
from typing import Any

import cbor2
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.protocol import encode
from fleet import cbor
from fleet.identity.keys import Identity, peer_id_from_public_key
from tests.corpus.gguf.build import Raw, llama, text
from tests.fuzz.base import Target
from tests.fuzz.blobs import SAID
from tests.fuzz.document import ADMIN, BOX, FLEET, GENESIS, OPS
from tests.fuzz.files import CHAT, COMPLETION, CONFIG, GEMMA, PIPE, gguf
from tests.fuzz.strategies import EDGES, changed, fuzz, numbers, odd_values
from tests.fuzz.sync import MESSAGES
from tests.fuzz.targets import TARGETS
from tests.fuzz.wire import EMBED, EVENTS, HELLO, INFER, PRESENCE

_FRAME_VALUES = [cbor2.loads(data) for data in TARGETS["frame"].seeds()]
_BODY_VALUES = [body for *_, body in OPS]
_GENESIS = cbor.decode(GENESIS.raw)
#: CBOR's integers have 64 bits; more would be tags.
in_cbor = odd_values.map(lambda value: value % (1 << 64) if type(value) is int else value) | st.binary(max_size=70)


def _accepts(target: Target, value: Any) -> bool:
    return target.run(cbor2.dumps(value, canonical=True))


@fuzz(400)
@given(changed([HELLO, PRESENCE, INFER, EMBED, *EVENTS], in_cbor))
def test_messages(value: Any) -> None:
    _accepts(TARGETS["message"], value)


@fuzz(240)
@given(changed(_FRAME_VALUES, in_cbor))
def test_frames(value: Any) -> None:
    _accepts(TARGETS["frame"], value)
    _accepts(TARGETS["refusal"], value)


@fuzz(240)
@given(changed([[4, 1, "overloaded", "m", True, {"retry_after": 3, "l": [1, {"a": 2}]}]], in_cbor))
def test_refusals(value: Any) -> None:
    _accepts(TARGETS["refusal"], value)


@fuzz(320)
@given(changed(_BODY_VALUES, in_cbor))
def test_bodies_and_facts(value: Any) -> None:
    _accepts(TARGETS["body"], value)
    _accepts(TARGETS["facts"], value)


@fuzz(320)
@given(changed(MESSAGES, in_cbor))
def test_sync_messages(value: Any) -> None:
    _accepts(TARGETS["sync"], value)
    _accepts(TARGETS["plain_json"], value)


@fuzz(160)
@given(changed(SAID, in_cbor))
def test_blob_messages(value: Any) -> None:
    _accepts(TARGETS["blob_message"], value)


@fuzz(120)
@given(changed([_GENESIS], in_cbor))
def test_geneses(value: Any) -> None:
    _accepts(TARGETS["genesis"], value)


_SIGNED = [
    [1, FLEET, author.public_key, number + 1, 1 << 58, kind, path, cbor.encode(body), [bytes([number]) * 32]]
    for number, (author, kind, path, body) in enumerate(OPS)
]


@fuzz(320)
@given(changed(_SIGNED, in_cbor), st.sampled_from(_BODY_VALUES), st.booleans(), st.sampled_from((ADMIN, BOX)))
def test_ops(fields: Any, body: Any, other_body: bool, signer: Identity) -> None:
    if other_body and isinstance(fields, list) and len(fields) == 9:
        fields[7] = cbor.encode(body)
    signed = cbor2.dumps(fields, canonical=True)
    TARGETS["op"].run(signed + signer.sign(b"shoal-op-v1\0" + signed))


def test_tokens_with_one_part_exchanged() -> None:
    target = TARGETS["token_inside"]
    (whole,) = target.seeds()
    fields = cbor.decode(whole)
    assert isinstance(fields, list)

    @fuzz(120)
    @given(st.integers(0, 4), in_cbor | st.sampled_from(fields))
    def run(at: int, value: Any) -> None:
        accepted = target.run(cbor2.dumps([*fields[:at], value, *fields[at + 1 :]], canonical=True))
        assert not accepted or at == 4 or value == fields[at]

    run()


@fuzz(120)
@given(
    st.binary(min_size=30, max_size=40)
    | st.integers(0, 255).map(lambda n: Identity.from_seed(bytes([n]) * 32).public_key)
)
def test_peer_ids_of_any_bytes(key: bytes) -> None:
    if len(key) == 32:
        TARGETS["peer_id"].run(peer_id_from_public_key(key).encode())
    TARGETS["peer_id"].run(key)


_HEADERS = ("", "prefer", " NEVER ", "require", "resume", "error", "00-x", "\xff", "x" * 99)


@fuzz(320)
@given(
    changed([CHAT, COMPLETION], odd_values | st.integers(-(10**400), 10**400)),
    st.lists(
        st.sampled_from(("", "prefer", " NEVER ", "require", "resume", "error", "00-x", "\xff", "x" * 99)), max_size=3
    ),
)
def test_http_requests(value: Any, headers: list[str]) -> None:
    lines = [header.encode("latin-1") for header in (*headers, "", "", "")[:3]]
    TARGETS["http"].run(b"\n".join((*lines, json.dumps(value).encode("utf-8", "surrogatepass"))))


@fuzz(120)
@given(changed([yaml.safe_load(CONFIG)]), st.booleans())
def test_configurations(value: Any, flow: bool) -> None:
    TARGETS["config"].run(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True).encode())


_yaml_scalars = st.sampled_from(
    ["", "~", "null", "yes", "0o17", "017", "0x", "0x_", "0b", "1_000", "1:59:59", "190:20:30.15", ".", "-", "+",
     "-.inf", ".nan", "1e3", "1.e+3", "2001-12-14t21:59:43.10-05:00", "2001-13-99", "=", "<<", "'", '"', "|", ">-",
     "*a", "&a x", "!!str x", '!!int ""', '!!float "-"', "!!bool maybe", "!!timestamp x", "!!binary =", "!!omap []",
     "!!set {a}", "!x y", "!!python/name:os.system", '"\\x00"', '"\\ud83d"', '"\\U0010ffff"', '"\\UFFFFFFFF"',
     "[", "]", "{", "}", ",", "? ", "%YAML 1.1", "---", "...", "#", "\t", "\x85", "\u2028", "\ufeff",
     "~root/x", "~nobody-here/x"]
)  # fmt: skip


@fuzz(200)
@given(st.lists(st.tuples(st.sampled_from(CONFIG.split("\n")), _yaml_scalars | st.text(max_size=6)), max_size=8))
def test_configurations_line_by_line(lines: list[tuple[str, str]]) -> None:
    broken = [line.partition(":")[0] + ": " + value if value else line for line, value in lines]
    TARGETS["config"].run("\n".join(broken).encode("utf-8", "surrogatepass"))


_gguf_values = st.one_of(
    st.tuples(st.sampled_from((0, 1, 4, 5, 6, 7, 10, 11, 12)), numbers.map(lambda number: struct.pack("<Q", number))),
    st.tuples(st.just(8), st.binary(max_size=40).map(text)),
    st.tuples(
        st.just(9),
        st.builds(
            lambda kind, count, raw: struct.pack("<IQ", kind, count) + raw,
            st.integers(0, 14),
            numbers,
            st.binary(max_size=40),
        ),
    ),
    st.tuples(numbers.map(lambda number: number % (1 << 32)), st.binary(max_size=12)),
)


@fuzz(320)
@given(
    st.dictionaries(
        st.sampled_from([*llama().entries, *GEMMA, "general.alignment", "llama"]),
        _gguf_values.map(lambda value: Raw(*value)),
        max_size=3,
    ),
    st.booleans(),
    st.sampled_from([*EDGES[:20], 65_536]).map(lambda number: number % (1 << 32)),
    st.integers(0, 45),
)
def test_gguf_headers(changes: dict[str, Raw], gemma: bool, count: int, kind: int) -> None:
    entries = {**(GEMMA if gemma else {}), **changes}
    TARGETS["gguf"].run(gguf(entries, kind=kind))
    TARGETS["gguf"].run(gguf(entries, count=count, kind=kind))


@fuzz(200)
@given(changed([cbor2.loads(encode(message)[4:]) for message in PIPE]))
def test_the_childs_messages(value: Any) -> None:
    body = cbor2.dumps(value)
    TARGETS["pipe"].run(b"\xff" + len(body).to_bytes(4, "big") + body)
