"""The JSON Schemas for editors say what the reader of manifests does, and the examples satisfy both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent.manifests.kinds import KINDS
from agent.manifests.read import ManifestError, read_manifests

ROOT = Path(__file__).resolve().parents[2] / "manifests"
SCHEMAS = {kind: json.loads((ROOT / "schema" / f"{kind.lower()}.json").read_text()) for kind in KINDS}
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def reader_accepts(document: Any) -> bool:
    try:
        read_manifests([("m.yaml", json.dumps(document))])
    except ManifestError:
        return False
    return True


def schema_accepts(kind: str, document: Any) -> bool:
    return bool(Draft202012Validator(SCHEMAS[kind]).is_valid(document))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_schema_that_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])


def test_there_is_no_schema_without_a_kind() -> None:
    assert {path.stem for path in (ROOT / "schema").iterdir()} == {kind.lower() for kind in KINDS}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_satisfies_its_schema_and_the_reader(path: Path) -> None:
    text = path.read_text("utf-8")
    for one in read_manifests([(path.name, text)]):
        assert f"$schema=../schema/{one.kind.lower()}.json" in text
    for document in yaml.safe_load_all(text):
        assert schema_accepts(document["kind"], document)


def test_every_kind_has_an_example() -> None:
    found = read_manifests([(path.name, path.read_text("utf-8")) for path in EXAMPLES])
    assert {one.kind for one in found} == set(KINDS)


#: Values at and beyond the bounds of the fields, and of other types. No 5.0: JSON Schema calls that an integer.
VALUES = st.sampled_from(
    [
        0, 1, 64, 63, 10_000, 10_001, 1 << 20, (1 << 20) + 1, 6000, 6001, -1, True, False, 0.5,
        1.5, 3600.5, 86400.5, 1e9 + 0.5,
        "all", "members", "allow-list", "window", "every", "1.4.2", "infer", "Infer", "", "x", "x" * 32, "x" * 33,
        "x" * 64, "x" * 65, "x" * 256, "x" * 257, "x" * 1024, "x" * 1025, "sha256:" + "a" * 64, "sha256:" + "A" * 64,
        "v1", "firewall", "a.b-c_d", "A", "-a", "a" * 63,
        [], ["infer"], ["infer", "blobs"], ["a b"], ["x"] * 16, ["x"] * 17, [1], {}, {"a": "b"}, {"labels": {}},
        {"labels": {"site": "berlin"}}, {"labels": {"site": 1}}, {"labels": {"a b": "c"}}, {"lables": {}},
        {"mode": "sample", "seconds": 5}, {"mode": "none"}, {"count": 0}, {"band": 0.1}, {"x": 1},
    ]
)  # fmt: skip
KEYS = sorted({key for schema in SCHEMAS.values() for key in schema["properties"]["spec"]["properties"]} | {"nonsense"})
VALID: dict[str, dict[str, Any]] = {
    "Model": {"source": "x"},
    "Alias": {"model": "m"},
    "Placement": {"model": "m"},
    "Policy": {"mode": "members"},
    "Pipeline": {"topics": ["t"], "model": "m", "prompt": "p", "publish": "o"},
    "Version": {"version": "1.0"},
}


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(KINDS)), st.booleans(), st.data())
def test_schema_and_reader_agree(kind: str, start_valid: bool, data: st.DataObject) -> None:
    spec = dict(VALID[kind]) if start_valid else {}
    own = sorted(SCHEMAS[kind]["properties"]["spec"]["properties"])
    spec |= data.draw(st.dictionaries(st.sampled_from(own) | st.sampled_from(KEYS), VALUES, max_size=3))
    name = "firewall" if kind == "Policy" else "a"
    if data.draw(st.integers(0, 9)) == 0:
        name = data.draw(VALUES)
    document = {"kind": kind, "name": name, "spec": spec}
    assert reader_accepts(document) == schema_accepts(kind, document), document


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("missing", ["kind", "name", "spec"])
def test_a_manifest_lacks_none_of_its_keys(kind: str, missing: str) -> None:
    document = {"kind": kind, "name": "firewall" if kind == "Policy" else "a", "spec": VALID[kind]}
    assert reader_accepts(document)
    assert schema_accepts(kind, document)
    del document[missing]
    assert not reader_accepts(document)
    assert not schema_accepts(kind, document)
