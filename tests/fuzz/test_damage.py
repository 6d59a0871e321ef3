"""Every decoder against damaged inputs, noise and nearly right CBOR: only the documented error ever comes out.

What each target checks of what was accepted (that it can be written again, that its limits hold) is in its `run_*`.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.base import Target, peak_memory
from tests.fuzz.strategies import cbor_items, damaged, fuzz
from tests.fuzz.targets import TARGETS

#: Targets whose input is one item of CBOR, and what stands around it in the others.
OF_CBOR = (
    "cbor",
    "frame",
    "message",
    "refusal",
    "body",
    "facts",
    "genesis",
    "token_inside",
    "sync",
    "plain_json",
    "addrs",
    "policy",
    "own_seq",
    "join_ask",
    "join_done",
    "join_answer",
    "blob_message",
)
every = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


@every
def test_damaged_inputs(target: Target) -> None:
    @fuzz(100)
    @given(damaged(target))
    def run(data: bytes) -> None:
        target.run(data)

    run()


@every
def test_noise(target: Target) -> None:
    @fuzz(40)
    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def run(data: bytes) -> None:
        target.run(data)

    run()


@every
def test_damaged_inputs_take_bounded_memory(target: Target) -> None:
    for seed in target.seeds():
        target.run(seed)

    @fuzz(10)
    @given(damaged(target))
    def run(data: bytes) -> None:
        target.run(data)  # warms what is cached by shape: messages of errors, formats of structs
        assert peak_memory(target, data) <= target.memory * len(data) + target.memory_base

    run()


@fuzz(250)
@given(cbor_items)
def test_any_cbor(data: bytes) -> None:
    for name in OF_CBOR:
        TARGETS[name].run(data)


@fuzz(60)
@given(st.integers(0, 12), st.lists(cbor_items, max_size=9))
def test_any_cbor_in_a_frame(kind: int, fields: list[bytes]) -> None:
    payload = bytes([0x80 | 1 + len(fields), kind]) + b"".join(fields)
    TARGETS["frame"].run(payload)
    TARGETS["frames"].run(b"\x02" + len(payload).to_bytes(4, "big") + payload)


@fuzz(60)
@given(st.lists(cbor_items, min_size=9, max_size=9))
def test_any_cbor_in_an_op(fields: list[bytes]) -> None:
    TARGETS["op"].run(b"\x89" + b"".join(fields) + bytes(64))


@fuzz(120)
@given(
    st.sampled_from(("load", "submit", "cancel", "unload", "loaded", "begun", "step", "done", "failed", "")),
    st.lists(cbor_items, max_size=10),
)
def test_any_cbor_in_the_childs_pipe(kind: str, fields: list[bytes]) -> None:
    payload = bytes([0x80 | 2 + len(fields), 1, 0x60 | len(kind)]) + kind.encode() + b"".join(fields)
    TARGETS["pipe"].run(b"\x04" + len(payload).to_bytes(4, "big") + payload)
