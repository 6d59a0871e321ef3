"""Manifests: every mistake is found, on its line, with what would be valid; limits hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.manifests.kinds import KINDS, kind_of, path_of
from agent.manifests.read import MAX_DOCUMENTS, MAX_VALUE, ManifestError, read_manifests
from agent.yaml_text import MAX_BYTES
from fleet import cbor
from fleet.document.firewall import read_policy

MODEL = "kind: Model\nname: smol\nspec:\n  source: https://example.com/smol.gguf\n"


def mistakes_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifests([("m.yaml", text)])
    assert caught.value.code == "manifest"
    return caught.value.message.splitlines()


def test_several_documents_in_several_files_are_read_in_order() -> None:
    placement = "kind: Placement\nname: everywhere\nspec: {model: smol, replicas: all}\n"
    found = read_manifests([("a.yaml", f"---\n{MODEL}---\n---\n{placement}"), ("b.yaml", "# nothing yet\n")])
    assert [(one.kind, one.name, one.path, one.line) for one in found] == [
        ("Model", "smol", "model/smol", 2),
        ("Placement", "everywhere", "place/everywhere", 8),
    ]
    assert cbor.decode(found[1].body) == {"model": "smol", "replicas": "all"}


def test_what_is_not_given_is_not_written() -> None:
    (policy,) = read_manifests([("p.yaml", "kind: Policy\nname: firewall\nspec:\n  mode: allow-list\n  scopes:\n")])
    assert policy.spec == {"mode": "allow-list"}
    assert read_policy(policy.body).mode == "allow-list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: Modle\nname: a\nspec: {}\n", "m.yaml:1: unknown kind 'Modle'; did you mean 'Model'?"),
        ("kind: model\nname: a\nspec: {}\n", "m.yaml:1: unknown kind 'model'; did you mean 'Model'?"),
        ("name: a\nspec: {}\n", "m.yaml:1: kind is missing; kinds: Model, Alias, Placement, Policy, Pipeline, Version"),
        ("kind: [Model]\nname: a\n", "m.yaml:1: unknown kind \"['Model']\"; did you mean 'Model'?"),
        ("- kind: Model\n", "m.yaml:1: a manifest is a mapping with the keys kind, name, spec"),
        ("kind: Model\nname: a\n", "m.yaml:1: spec is missing"),
        ("kind: Model\nspec: {source: x}\n", "m.yaml:1: name is missing"),
        (
            "kind: Model\nname: a\nspec:\n  source: x\n  quantt: q4\n",
            "m.yaml:5: unknown key 'quantt' in spec; did you mean 'quant'?",
        ),
        ("kind: Model\nname: a\nspecs: {}\nspec: {source: x}\n", "m.yaml:3: unknown key 'specs'; did you mean 'spec'?"),
        (
            "kind: Model\nname: a\nspec:\n  hash: abc\n",
            "m.yaml:4: spec.hash: must be sha256: and 64 hex digits, lower case, not 'abc'",
        ),
        (
            "kind: Model\nname: a\nspec:\n  family: llama\n",
            "m.yaml:3: spec: needs hash or source, or nobody knows which model is meant",
        ),
        (
            "kind: Model\nname: Big Model\nspec: {source: x}\n",
            "m.yaml:2: name: must be lower-case letters, digits, '.', '_' or '-', at most 63, no sign first,"
            " not 'Big Model'",
        ),
        ("kind: Model\nname: a\nspec: {source: 5}\n", "m.yaml:3: spec.source: must be text, not 5; put it in quotes"),
        (
            "kind: Placement\nname: a\nspec:\n  model: m\n  replicas: some\n",
            "m.yaml:5: spec.replicas: must be a number from 1 to 10000, or all, not 'some'",
        ),
        (
            "kind: Placement\nname: a\nspec:\n  model: m\n  replicas: true\n",
            "m.yaml:5: spec.replicas: must be a number from 1 to 10000, or all, not True",
        ),
        ("kind: Placement\nname: a\nspec: {replicas: 1}\n", "m.yaml:3: spec.model is missing"),
        (
            "kind: Placement\nname: a\nspec:\n  model: m\n  selector:\n    lables: {a: b}\n",
            "m.yaml:6: unknown key 'lables' in spec.selector; did you mean 'labels'?",
        ),
        (
            "kind: Policy\nname: firewal\nspec: {}\n",
            "m.yaml:2: name: must be firewall, routing or transfer, not 'firewal'",
        ),
        (
            "kind: Policy\nname: firewall\nspec:\n  mode: open\n",
            "m.yaml:4: spec.mode: must be 'members' or 'allow-list', not 'open'",
        ),
        (
            "kind: Policy\nname: firewall\nspec:\n  scopes:\n    - infer\n    - Blobs\n",
            "m.yaml:6: spec.scopes[1]: must be a scope such as infer, blobs or models, not 'Blobs'",
        ),
        (
            "kind: Version\nname: a\nspec: {version: 1.4}\n",
            "m.yaml:3: spec.version: must be text, not 1.4; put it in quotes",
        ),
        ("kind: Model\nname: a\nname: b\nspec: {}\n", "m.yaml:3: name is given twice, first on line 2"),
        (
            "kind: Model\nname: a\nspec: &x {source: x}\nmore: *x\n",
            "m.yaml:4: aliases (*x) are not supported; write the value",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_is_valid(text: str, expected: str) -> None:
    assert mistakes_of(text) == [expected]


def test_all_mistakes_of_all_documents_and_files_are_named_at_once() -> None:
    first = "kind: Modell\nname: a\nspec: {}\n---\nkind: Model\nname: B\nspec: {sauce: x}\n"
    with pytest.raises(ManifestError) as caught:
        read_manifests([("a.yaml", first), ("b.yaml", "kind: [\n"), ("c.yaml", MODEL)])
    lines = caught.value.message.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["a.yaml:1:", "a.yaml:6:", "a.yaml:7:", "b.yaml:2:"]
    assert caught.value.details["mistakes"] == lines


def test_one_thing_defined_twice_names_both_places() -> None:
    with pytest.raises(ManifestError, match=r"b\.yaml:2: Model smol is given twice, first at a\.yaml:1"):
        read_manifests([("a.yaml", MODEL), ("b.yaml", f"---\n{MODEL}")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * (MAX_BYTES + 1), "larger than"),
        ("---\na: b\n" * (MAX_DOCUMENTS + 1), f"more than {MAX_DOCUMENTS} documents"),
        ("a: " + "[" * 40 + "]" * 40, "nested more than 16 deep"),
        ("kind: Model\nname: a\nspec: {source: x}\n" + "".join(f"k{i}: 1\n" for i in range(11_000)), "more than 20000"),
        ("kind: Model\nname: a\nspec: {source: " + "x" * 2000 + "}\n", "must have at most 1024 characters"),
        (
            "kind: Pipeline\nname: a\nspec: {topics: [t], model: m, prompt: p, publish: o,"
            " answer: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}\n",
            "nested more than 8 deep",
        ),
        (
            "kind: Pipeline\nname: a\nspec: {topics: [t], model: m, prompt: p, publish: o,"
            " answer: {description: " + "x" * MAX_VALUE + "}}\n",
            f"a value has at most {MAX_VALUE}",
        ),
        (
            "kind: Pipeline\nname: a\nspec: {topics: [t], model: m, prompt: p, publish: o,"
            " answer: {maximum: " + "9" * 40 + "}}\n",
            "more than 64 bits",
        ),
    ],
)  # fmt: skip
def test_limits_are_named(text: str, said: str) -> None:
    assert said in "\n".join(mistakes_of(text))


@given(st.text(max_size=200) | st.lists(st.sampled_from(MODEL.split("\n")), max_size=8).map("\n".join))
def test_whatever_the_text_there_is_either_an_answer_or_a_mistake(text: str) -> None:
    try:
        found = read_manifests([("m.yaml", text)])
    except ManifestError:
        return
    assert all(one.kind in KINDS for one in found)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_path_leads_back_to_its_kind(kind: str) -> None:
    assert kind_of(path_of(kind, "a")) == kind


def test_other_paths_belong_to_no_kind() -> None:
    paths: list[Any] = ["invite/ab", "models/x", "model"]
    assert [kind_of(path) for path in paths] == [None, None, "Model"]
