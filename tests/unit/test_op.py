"""Ops: limits before anything else, one form only, and signatures that hold for one fleet and one purpose."""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from fleet.document import op as ops
from fleet.document.op import Op, read_op, signature_holds, write_op
from fleet.document.plain_form import read_plain
from fleet.errors import RefusedOpError
from fleet.identity.keys import Identity
from tests.property import budget

BOX = Identity.from_seed(bytes(32))
OTHER = Identity.from_seed(bytes(range(32)))
FLEET = bytes(range(32))
KEY = OTHER.public_key.hex()
ID = bytes(32)


def signed(fields: object, signer: Identity = BOX, domain: bytes = b"shoal-op-v1\0") -> bytes:
    raw = cbor2.dumps(fields, canonical=True)
    return raw + SigningKey(signer.seed).sign(domain + raw).signature


def fields(**change: Any) -> list[Any]:
    good = {
        "version": 1,
        "fleet": FLEET,
        "author": BOX.public_key,
        "seq": 7,
        "hlc": 1000,
        "kind": "node",
        "path": "hold/x",
        "body": cbor2.dumps({"size": 1}, canonical=True),
        "sup": [],
    }
    assert change.keys() <= good.keys()
    return list((good | change).values())


def refusal(raw: bytes) -> str:
    with pytest.raises(RefusedOpError) as caught:
        read_op(raw)
    return caught.value.reason


def test_an_op_says_what_was_written() -> None:
    raw = signed(fields(kind="cfg", sup=[ID, FLEET]))
    op = read_op(raw)
    assert op == Op(
        id=hashlib.blake2b(raw[:-64], digest_size=32).digest(),
        fleet=FLEET,
        author=BOX.public_key,
        seq=7,
        hlc=1000,
        kind="cfg",
        path="hold/x",
        body=b"\xa1\x64size\x01",
        sup=(ID, FLEET),
        raw=raw,
    )
    assert signature_holds(op)


def test_what_is_written_here_is_the_format_byte_for_byte() -> None:
    op = write_op(BOX, FLEET, seq=7, hlc=1000, kind="cfg", path="hold/x", body={"size": 1}, sup=[FLEET, ID, FLEET])
    assert op.raw == signed(fields(kind="cfg", sup=[ID, FLEET]))


def test_the_id_and_the_bytes_are_those_of_the_test_vector() -> None:
    """The first byte that differs is a change of the format: no box out there would understand it."""
    op = write_op(BOX, FLEET, seq=1, hlc=2, kind="fw", path=KEY, body=["deny", []])
    assert op.raw[:-64].hex() == (
        f"89015820{FLEET.hex()}5820{BOX.public_key.hex()}0102626677"  # array of 9, version, fleet, author, seq, hlc, fw
        f"7840{KEY.encode().hex()}47826464656e798080"  # path, body in 7 bytes: ["deny", []], sup
    )
    assert op.subject == OTHER.public_key


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("node", "node"),
        ("node", "addr"),
        ("node", "perf/sha256:00ff"),
        ("node", "used/" + KEY),
        ("node", "something/that-a-newer-box:writes"),
        ("cfg", "model/x"),
        ("cfg", "policy/firewall"),
        ("cfg", "invite/" + "ab" * 16),
        ("join", "ab" * 16),
        ("cert", KEY),
        ("revoke", KEY),
        ("fw", KEY),
    ],
)
def test_paths_that_each_kind_takes(kind: str, path: str) -> None:
    assert read_op(signed(fields(kind=kind, path=path))).path == path


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        *((kind, path) for kind in ("node", "cfg") for path in ("", "/", "Node", "node/", "/x", "node x", "n\n", "9")),
        *((kind, path) for kind in ("node", "cfg") for path in ("hold/\u00e9", "hold/\x7f", "hold/a b", "hold/x\n")),
        ("node", KEY),
        ("cfg", "model"),
        ("cfg", KEY),
        *((kind, path) for kind in ("cert", "revoke", "fw") for path in (KEY.upper(), KEY[:-1], KEY + "0", "node")),
        *((kind, path) for kind in ("cert", "revoke", "fw") for path in ("a" * 63 + "g", KEY[:-1] + "\n", "0x" + KEY)),
        *(("join", path) for path in ("ab" * 15, "ab" * 17, "AB" * 16, "invite/" + "ab" * 16)),
    ],
)
def test_paths_that_a_kind_does_not_take(kind: str, path: str) -> None:
    assert refusal(signed(fields(kind=kind, path=path))) == "form"


WRONG: list[Any] = [None, True, 1.0, -1, "1", b"1", [], {}, [1], 1 << 64, float("nan"), cbor2.undefined]


@pytest.mark.parametrize("field", ["version", "fleet", "author", "seq", "hlc", "kind", "path", "body", "sup"])
def test_a_wrong_type_in_any_field_is_refused(field: str) -> None:
    for value in WRONG:
        if (field, value) in (("sup", []), ("body", b"1")):
            continue
        assert refusal(signed(fields(**{field: value}))) in ("form", "limits")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "form"),
        ({"version": 0}, "form"),
        ({"fleet": bytes(31)}, "form"),
        ({"fleet": bytes(33)}, "form"),
        ({"author": bytes(31)}, "form"),
        ({"author": bytes(33)}, "form"),
        ({"seq": 0}, "limits"),
        ({"seq": 1 << 48}, "limits"),
        ({"hlc": 1 << 63}, "limits"),
        ({"kind": "nodes"}, "form"),
        ({"kind": "Node"}, "form"),
        ({"path": "hold/" + "x" * 252}, "form"),
        ({"body": bytes(2049)}, "limits"),
        ({"sup": [ID]}, "limits"),
        ({"kind": "join", "path": "ab" * 16, "sup": [ID]}, "limits"),
        ({"kind": "join", "path": "ab" * 16, "body": bytes(4000)}, "limits"),
        ({"kind": "cert", "path": KEY, "body": bytes(4000)}, "limits"),
        ({"kind": "revoke", "path": KEY, "body": bytes(4000)}, "limits"),
        ({"kind": "fw", "path": KEY, "body": bytes(4000)}, "limits"),
        ({"kind": "cfg", "sup": [bytes(31)]}, "limits"),
        ({"kind": "cfg", "sup": [FLEET, ID]}, "form"),
        ({"kind": "cfg", "sup": [ID, ID]}, "form"),
        ({"kind": "cfg", "sup": [number.to_bytes(32, "big") for number in range(65)]}, "limits"),
    ],
)
def test_past_a_limit(change: dict[str, Any], reason: str) -> None:
    assert refusal(signed(fields(**change))) == reason


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 1},
        {"seq": (1 << 48) - 1},
        {"hlc": 0},
        {"hlc": (1 << 63) - 1},
        {"path": "hold/" + "x" * 251},
        {"body": cbor2.dumps(bytes(2045))},
        {"kind": "cfg", "body": cbor2.dumps(bytes(10_000))},
        {"kind": "cfg", "sup": [number.to_bytes(32, "big") for number in range(64)]},
        {
            "kind": "fw",
            "path": KEY,
            "body": cbor2.dumps(["allow", ["s" * 31 + digit for digit in "0123456789abcdef"]]),
            "sup": [number.to_bytes(32, "big") for number in range(64)],
        },
    ],
)
def test_at_a_limit(change: dict[str, Any]) -> None:
    assert signature_holds(read_op(signed(fields(**change))))


def test_size_is_looked_at_first() -> None:
    room = ops.MAX_OP - len(signed(fields(kind="cfg", body=cbor2.dumps(bytes(10_000))))) + 10_000
    largest = signed(fields(kind="cfg", body=cbor2.dumps(bytes(room))))
    assert len(largest) == 16 * 1024
    read_op(largest)
    assert refusal(largest + b"\0") == "size"
    assert refusal(b"\xff" * (16 * 1024 + 1)) == "size"
    assert refusal(b"") == "size"
    assert refusal(bytes(64)) == "size"
    assert refusal(bytes(65)) == "form"


@pytest.mark.parametrize(
    "signed_part",
    [
        cbor2.dumps([1, FLEET]),
        cbor2.dumps(fields()[:8]),
        cbor2.dumps([*fields(), 0]),
        cbor2.dumps(dict(enumerate(fields()))),
        cbor2.dumps(fields()) + b"\0",
        cbor2.dumps(fields())[:-1],
        b"\x98\x09" + cbor2.dumps(fields())[1:],  # the same array with its length in two bytes
        b"\x9f" + cbor2.dumps(fields())[1:] + b"\xff",  # the same array without a length
        cbor2.dumps(fields()).replace(b"\x01\x58", b"\x18\x01\x58", 1),  # the same 1 in two bytes
        cbor2.dumps(cbor2.CBORTag(55799, fields())),
        b"\x81" * 100 + b"\x00",
        b"\xd8\x1e\x82\x01\x02" * 3,
    ],
)
def test_only_one_form_of_an_op_is_accepted(signed_part: bytes) -> None:
    assert refusal(signed_part + SigningKey(BOX.seed).sign(b"shoal-op-v1\0" + signed_part).signature) == "form"


LENGTHS = st.sampled_from([0, 1, 22, 23, 24, 25, 100, 254, 255, 256, 257, 300])
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
PLAIN_PARTS = st.fixed_dictionaries(
    {
        "author": st.binary(min_size=32, max_size=32),
        "seq": NUMBERS,
        "hlc": NUMBERS,
        "kind": st.sampled_from([*get_args(ops.Kind), "what"]),
        "path": st.one_of(LENGTHS.map("x".__mul__), st.text(max_size=30), st.just("a/\x00\x7f")),
        "body": LENGTHS.flatmap(lambda length: st.binary(min_size=length, max_size=length)),
        "sup": st.sampled_from([[], [], [ID], [b""], ID]),
    }
)
#: Where to put what, or what to cut off at the end where it is None.
DAMAGE = st.tuples(st.integers(0, 400), st.one_of(st.none(), st.binary(min_size=1, max_size=2)))


@given(PLAIN_PARTS, st.one_of(st.none(), DAMAGE))
def test_what_is_read_without_a_decoder_is_what_the_decoder_reads(
    parts: dict[str, Any], damage: tuple[int, bytes | None] | None
) -> None:
    content = cbor2.dumps(fields(**parts), canonical=True)
    if damage is not None:
        at, put = damage[0] % len(content), damage[1]
        content = content[:at] if put is None else content[:at] + put + content[at + len(put) :]
    quick = read_plain(content)
    if quick is not None:
        assert ops._decode(content) == quick
    elif damage is None:
        plain = parts["kind"] in get_args(ops.Kind) and parts["path"].isascii() and 0 < len(parts["path"]) < 256
        assert not plain or parts["sup"] != [], "it is read slowly, with nobody noticing"


def test_every_number_has_one_form_without_a_decoder() -> None:
    head = b"\x89\x01\x58\x20" + FLEET + b"\x58\x20" + BOX.public_key
    tail = cbor2.dumps("node") * 2 + b"\x41\xa0\x80"
    for number in (0, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32):
        forms = [bytes([number])] if number < 24 else []
        for length, first in ((1, 0x18), (2, 0x19), (4, 0x1A), (8, 0x1B)):
            if number < 1 << 8 * length:
                forms.append(bytes([first]) + number.to_bytes(length, "big"))
        for form in forms:
            assert (read_plain(head + form + b"\x07" + tail) is not None) == (form == forms[0])
            assert (read_plain(head + b"\x07" + form + tail) is not None) == (form == forms[0])
    for length, form in (
        (5, b"\x58\x05"),
        (5, b"\x59\x00\x05"),
        (5, b"\x45"),
        (200, b"\x59\x00\xc8"),
        (200, b"\x58\xc8"),
    ):
        content = head + b"\x07\x07" + cbor2.dumps("node") * 2 + form + bytes(length) + b"\x80"
        assert (read_plain(content) is not None) == (form in (b"\x45", b"\x58\xc8"))
    for form in (b"\x64", b"\x78\x04"):
        assert (read_plain(head + b"\x07\x07" + form + b"node" + tail[5:]) is not None) == (form == b"\x64")
        assert (read_plain(head + b"\x07\x07\x64node" + form + b"node" + tail[10:]) is not None) == (form == b"\x64")


def test_every_changed_bit_breaks_the_form_or_the_signature() -> None:
    raw = signed(fields(kind="cfg", sup=[ID]))
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            op = read_op(bytes(changed))
        except RefusedOpError:
            continue
        assert not signature_holds(op), bit


def test_a_signature_holds_for_its_author_and_its_purpose_only() -> None:
    assert signature_holds(read_op(signed(fields())))
    assert not signature_holds(read_op(signed(fields(), signer=OTHER))), "forged"
    assert not signature_holds(read_op(signed(fields(author=OTHER.public_key))))
    assert not signature_holds(read_op(signed(fields(), domain=b""))), "signed for nothing in particular"
    assert not signature_holds(read_op(signed(fields(), domain=b"shoal-join-v1\0")))
    one, other = signed(fields(seq=1)), signed(fields(seq=2))
    assert not signature_holds(read_op(one[:-64] + other[-64:])), "taken from another op"


@pytest.mark.parametrize("weak", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
def test_no_signature_holds_for_a_key_that_nobody_can_hold(weak: bytes) -> None:
    """Keys of small order verify forged signatures in lax implementations (RFC 8032, section 8.9)."""
    raw = cbor2.dumps(fields(author=weak), canonical=True)
    for signature in (bytes(64), b"\1" + bytes(63), weak + bytes(32)):
        assert not signature_holds(read_op(raw + signature))


def test_a_signature_has_one_form() -> None:
    """S plus the group's order is the malleable twin of a signature (RFC 8032, section 5.1.7)."""
    raw = signed(fields())
    order = (1 << 252) + 27742317777372353535851937790883648493
    twin = (int.from_bytes(raw[-32:], "little") + order).to_bytes(32, "little")
    assert not signature_holds(read_op(raw[:-32] + twin))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"seq": 1 << 70},
        {"hlc": -1},
        {"kind": "nope"},
        {"path": "no/\x00"},
        {"body": bytes(3000)},
        {"sup": [b"short"]},
        {"fleet": b"short"},
    ],
)
def test_nobody_writes_what_nobody_would_accept(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"seq": 1, "hlc": 1, "kind": "node", "path": "node", "body": 1, "fleet": FLEET}
    with pytest.raises(RefusedOpError):
        write_op(BOX, **(good | change))


def outcome(raw: bytes) -> Op | str:
    try:
        return read_op(raw)
    except RefusedOpError as error:
        return error.reason


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@budget(150)  # `make fuzz` makes up ops by the million
@given(st.binary(max_size=300) | st.lists(plain, min_size=9, max_size=9).map(signed))
def test_any_bytes_are_an_op_or_a_refusal(raw: bytes) -> None:
    made = outcome(raw)
    assert made in ("size", "form", "limits") if isinstance(made, str) else made.raw == raw


@budget(200)
@given(st.sampled_from(range(1, 9)), plain)
def test_any_value_in_any_field_is_an_op_or_a_refusal(place: int, value: object) -> None:
    changed = fields()
    changed[place] = value
    made = outcome(signed(changed))
    if isinstance(made, str):
        assert made in ("form", "limits")
    else:
        assert cbor2.loads(made.raw[:-64])[place] == value
