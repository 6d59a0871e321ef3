"""Trees, manifests and bitfields: what is right, and what is refused of what others send."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import cbor
from fleet.blobs import merkle
from fleet.blobs.bitfield import BadBitfieldError, Bitfield
from fleet.blobs.errors import BadManifestError, MissingAlgorithmError
from fleet.blobs.manifest import MAX_BLOCKS, MAX_SIZE, Manifest, check_leaf_list, check_leaves, read_manifest
from fleet.blobs.merkle import BLOCK, leaf_hash, root_of
from tests.blob_files import sample

#: The inputs and roots of the reference implementation of RFC 6962 (certificate-transparency, merkle_tree_test.cc).
INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


@pytest.mark.parametrize("leaves", range(9))
def test_roots_are_those_of_the_rfc(leaves: int) -> None:
    hashes = [leaf_hash(bytes.fromhex(text), "sha256") for text in INPUTS[:leaves]]
    assert root_of(hashes, "sha256").hex() == ROOTS[leaves]


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_the_tree_is_as_the_rfc_defines_it_by_recursion(algorithm: str) -> None:
    if algorithm == "blake3":
        new: Any = pytest.importorskip("blake3").blake3
    else:
        new = hashlib.sha256
    leaves = [leaf_hash(bytes([n]), algorithm) for n in range(67)]
    assert leaves[3] == new(b"\0\3").digest()

    def root(of: list[bytes]) -> bytes:
        if len(of) == 1:
            return of[0]
        left = 1 << (len(of) - 1).bit_length() - 1
        return bytes(new(b"\1" + root(of[:left]) + root(of[left:])).digest())

    for count in range(1, len(leaves) + 1):
        assert root_of(leaves[:count], algorithm) == root(leaves[:count])


def test_a_node_cannot_pass_for_a_leaf() -> None:
    leaves = [leaf_hash(bytes([n]), "sha256") for n in range(4)]
    nodes = [root_of(leaves[:2], "sha256"), root_of(leaves[2:], "sha256")]
    assert root_of(leaves, "sha256") == root_of(nodes, "sha256")  # of hashes it is the same ...
    assert leaf_hash(leaves[0] + leaves[1], "sha256") != nodes[0]  # ... but no data hash to that


def test_an_algorithm_that_is_not_there_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(merkle, "import_module", missing)
    merkle._hasher.cache_clear()
    try:
        with pytest.raises(MissingAlgorithmError, match="pip install"):
            leaf_hash(b"x", "blake3")
        with pytest.raises(MissingAlgorithmError, match="sha256, blake3"):
            leaf_hash(b"x", "md5")
    finally:
        merkle._hasher.cache_clear()


def good() -> dict[str, Any]:
    return {"sha256": "sha256:" + "a" * 64, "size": BLOCK + 1, "root": "b" * 64, "algorithm": "sha256"}


def test_a_manifest_is_read_as_it_was_written_also_over_the_wire() -> None:
    manifest = read_manifest(good())
    assert (manifest.blocks, manifest.block_size(0), manifest.block_size(1)) == (2, BLOCK, 1)
    assert read_manifest(cbor.decode(cbor.encode(manifest.body()))) == manifest
    for index in (-1, 2):
        with pytest.raises(IndexError):
            manifest.block_size(index)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -1},
        {"size": MAX_SIZE + 1},
        {"size": 2**63},
        {"size": 2**64},
        {"size": 1.0},
        {"size": True},
        {"size": "5"},
        {"size": None},
        {"sha256": "a" * 64},
        {"sha256": "sha256:" + "A" * 64},
        {"sha256": "sha256:" + "a" * 64 + "\n"},
        {"sha256": "sha256:../../../../etc/passwd"},
        {"sha256": b"sha256:" + b"a" * 64},
        {"root": "b" * 63},
        {"root": b"b" * 32},
        {"root": "z" * 64},
        {"root": "b" * 64 + "\n"},
        {"algorithm": "md5"},
        {"algorithm": ["sha256"]},
        {"more": 1},
    ],
)
def test_a_manifest_past_a_limit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadManifestError):
        read_manifest(good() | change)


@pytest.mark.parametrize("key", ["sha256", "size", "root", "algorithm"])
def test_a_manifest_lacks_nothing(key: str) -> None:
    body = good()
    del body[key]
    with pytest.raises(BadManifestError):
        read_manifest(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=80) | st.binary(max_size=40),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["sha256", "size", "root", "algorithm", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_whatever_is_no_manifest_is_refused_in_words(value: object) -> None:
    with pytest.raises(BadManifestError):
        read_manifest(value)


def test_the_largest_blob_takes_what_its_limits_say() -> None:
    assert Manifest("sha256:" + "a" * 64, MAX_SIZE, bytes(32)).blocks == MAX_BLOCKS
    with pytest.raises(BadManifestError):
        check_leaves(Manifest("sha256:" + "a" * 64, MAX_SIZE, bytes(32)), b"")


def test_leaves_are_believed_once_they_fold_to_the_root() -> None:
    found = sample()
    raw = b"".join(found.leaves)
    assert check_leaves(found.manifest, raw) == found.leaves
    assert check_leaf_list(found.manifest, list(found.leaves)) == found.leaves
    swapped = raw[32:64] + raw[:32] + raw[64:]
    for bad in (b"", raw[:-1], raw + b"\0", raw[:-32], raw + raw[:32], swapped, bytes(len(raw))):
        with pytest.raises(BadManifestError):
            check_leaves(found.manifest, bad)
    for bad_list in (
        (),
        found.leaves[:-1],
        (*found.leaves, found.leaves[0]),
        (raw[:31], *found.leaves[1:]),
        (1, 2, 3, 4),
    ):
        with pytest.raises(BadManifestError):
            check_leaf_list(found.manifest, bad_list)  # type: ignore[arg-type]


@given(
    st.integers(0, 70).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.booleans(), st.integers(-2, n + 2))))
    )
)
def test_a_bitfield_is_a_set(case: tuple[int, list[tuple[bool, int]]]) -> None:
    blocks, steps = case
    bits, model = Bitfield(blocks), set[int]()
    for add, index in steps:
        if not 0 <= index < blocks:
            assert not bits.has(index)
            with pytest.raises(IndexError):
                bits.set(index) if add else bits.clear(index)
            continue
        assert (bits.set(index) if add else bits.clear(index)) == ((index not in model) == add)
        model = model | {index} if add else model - {index}
    assert list(bits) == sorted(model)
    assert list(bits.missing()) == sorted(set(range(blocks)) - model)
    assert (bits.count, bits.complete, len(bits)) == (len(model), len(model) == blocks, blocks)
    again = Bitfield.from_bytes(bits.to_bytes(), blocks)
    assert again == bits == bits.copy() == Bitfield(blocks, model)
    assert again.count == bits.count
    assert Bitfield.full(blocks) == Bitfield(blocks, range(blocks))


@given(st.binary(max_size=6), st.integers(0, 40))
def test_a_bitfield_has_one_form(raw: bytes, blocks: int) -> None:
    try:
        bits = Bitfield.from_bytes(raw, blocks)
    except BadBitfieldError:
        assert len(raw) != (blocks + 7) // 8 or int.from_bytes(raw, "big") & (1 << -blocks % 8) - 1
    else:
        assert bits.to_bytes() == raw


@pytest.mark.parametrize("blocks", [-1, MAX_BLOCKS + 1, 2**63])
def test_a_bitfield_of_any_size_is_not_made(blocks: int) -> None:
    with pytest.raises(BadBitfieldError):
        Bitfield(blocks)
