"""Selectors: how they are written, and which boxes they mean."""

from __future__ import annotations

import pytest

from agent.errors import BadRequestError
from agent.manifests.selector import parse_selector
from agent.reconcile.selector import why_not
from fleet.document.facts import Box, Node, Rate

JETSON = Box(
    b"k" * 32,
    Node("jetson-1", labels=(("arch", "mine"), ("site", "berlin")), arch="aarch64", cpus=6, memory=8 * 10**9,
         disk=64 << 30, gpu="NVIDIA Orin"),
    rates=(Rate("a", 4.0), Rate("b", 31.5)),
    written=1,
)  # fmt: skip
BARE = Box(b"b" * 32, Node("old"), written=1)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("site=berlin,ram>=2GB", True),
        ("site = berlin", None),
        ("site=berlin, ram>=2GB", True),
        ("site=hamburg", False),
        ("site!=hamburg", True),
        ("rack=1", False),
        ("rack!=1", True),
        ("ram>=8GB", True),
        ("ram>8GB", False),
        ("ram>=8GiB", False),
        ("ram<8.5GB", True),
        ("disk=64GiB", True),
        ("cpus>=6", True),
        ("cpus!=6", False),
        ("rate>=30", True),
        ("rate<=30", False),
        ("arch=arm64", True),
        ("arch!=aarch64", False),
        ("gpu=any", True),
        ("gpu=none", False),
        ("gpu=orin", True),
        ("name=jetson-1", True),
        ("ram>=lots", None),
        ("site>berlin", None),
        ("site=", None),
        ("=x", None),
        ("a=b,,c=d", None),
        (",".join(["a=b"] * 17), None),
        ("a=" + "b" * 600, None),
    ],
)  # fmt: skip
def test_a_selector_holds_of_a_box_or_says_why_not(text: str, holds: bool | None) -> None:
    if holds is None:
        with pytest.raises(BadRequestError):
            parse_selector(text)
        return
    reason = why_not(parse_selector(text), JETSON)
    assert (reason == "") == holds, reason


def test_what_a_box_does_not_say_is_never_enough() -> None:
    for text in ("ram>=1", "cpus<=64", "rate>=0.1", "disk!=3GB", "arch=x86_64", "gpu=any"):
        assert why_not(parse_selector(text), BARE)
    assert not why_not(parse_selector("gpu=none"), BARE)


def test_the_reason_names_the_term_and_what_the_box_has() -> None:
    assert why_not(parse_selector("ram>=16GB"), JETSON) == "ram>=16GB: it has 8GB"
    assert why_not(parse_selector("site=ulm"), JETSON) == "site=ulm: label site is berlin"
