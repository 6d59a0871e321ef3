"""Aliases and names of models as admins write them into the fleet document."""

from __future__ import annotations

from agent.model_names import ModelNames, names_of
from fleet.document.view import Governance
from tests.harness import Fleet

HASH = "sha256:" + "5" * 64


def governance(settings: dict[str, object]) -> Governance:
    fleet = Fleet()
    return Governance(fleet.genesis, [fleet.write("cfg", path, value) for path, value in settings.items()])


def test_aliases_and_hashes_are_read_as_manifests_write_them() -> None:
    names = names_of(
        governance(
            {
                "alias/till": {"model": "smollm2-135m-instruct"},
                "alias/chat": {"model": "till"},
                "model/smollm2-135m-instruct-q4_1": {"hash": HASH, "family": "smollm2"},
                "model/elsewhere": {"source": "https://example.org/x.gguf"},
                "place/till": {"model": "other"},
            }
        ).settings
    )
    asked = names.aliases.resolve("Chat", names.known_as)
    assert (asked.target, asked.aliases) == ("smollm2-135m-instruct", ("chat", "till"))
    assert names.aliases.resolve(HASH, names.known_as).model.family == "smollm"
    assert names.aliases.resolve("place/till").aliases == ("till",)


def test_one_content_is_asked_for_by_each_of_its_names() -> None:
    names = names_of(
        governance(
            {
                "model/smollm2": {"hash": HASH},
                "model/fresh": {"hash": HASH},
                "model/alone": {"hash": "sha256:" + "6" * 64},
                "alias/till": {"model": "smollm2"},
            }
        ).settings
    )
    for asked in ("smollm2", "Fresh", "till"):
        assert names.aliases.resolve(asked, names.known_as).target == HASH
    # What has one name is asked for by that: other boxes may have the like of it under it.
    assert names.aliases.resolve("alone", names.known_as).target == "alone"
    assert names.known_as[HASH] == "fresh"


def test_what_no_manifest_would_say_is_passed_over() -> None:
    odd = {
        "alias/a": "text",
        "alias/b": {"model": 7},
        "alias/c": {"model": ""},
        "alias/d": None,
        "model/e": {"hash": "x"},
    }
    names = names_of(governance(odd).settings)
    assert all(names.aliases.resolve(name).aliases == () for name in "abcd")
    assert names.known_as == {}


def test_the_names_are_read_again_only_when_admins_have_decided_something() -> None:
    found: list[Governance | None] = [None]
    names = ModelNames(lambda: found[0])
    nothing = names.now()
    assert names.now() is nothing
    found[0] = governance({"alias/till": {"model": "m"}})
    first = names.now()
    assert first.aliases.resolve("till").target == "m"
    assert names.now() is first
