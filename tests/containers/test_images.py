"""The shipped images: what they are, and what they do where they cannot do what is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.containers import engine
from tests.containers.box import LIMIT, Box, eventually

MB = 1_000_000


def inspected(image: str) -> dict[str, Any]:
    (found,) = json.loads(engine.docker("image", "inspect", image))
    return dict(found)


@pytest.mark.parametrize(("image", "limit"), [(engine.AGENT, 400 * MB), (engine.SLIM, 250 * MB)])
def test_an_image_is_small_unprivileged_and_labelled(image: str, limit: int) -> None:
    found = inspected(image)
    config = found["Config"]
    assert found["Size"] <= limit
    assert config["User"] == f"{engine.UID}:{engine.UID}"
    assert config["Healthcheck"]["Test"][-1].endswith("healthcheck.py")
    assert not config.get("Volumes")  # an anonymous volume would hide that nothing was mounted
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])


@pytest.mark.parametrize("image", [engine.AGENT, engine.SLIM])
def test_an_image_brings_the_bill_of_what_is_in_it(image: str) -> None:
    asked = (
        "import json; from importlib.metadata import distributions;"
        "bill = json.load(open('/usr/share/doc/shoal/sbom.cdx.json'));"
        "print(json.dumps([{one.name: one.version for one in distributions()}, bill]))"
    )
    label = f"{engine.RUN_LABEL}={engine.RUN}"
    installed, bill = json.loads(
        engine.docker("run", "--rm", "--label", label, "--entrypoint", "python3", image, "-c", asked)
    )
    assert bill["bomFormat"] == "CycloneDX"
    listed = {one["name"]: one["version"] for one in (*bill["components"], bill["metadata"]["component"])}
    assert listed == installed
    assert ("llama_cpp_python" in listed) == (image == engine.AGENT)


def test_nothing_in_an_image_is_its_users_but_its_state(network: Any) -> None:
    command = ("--user", "0", "--entrypoint", "find", engine.AGENT, "/", "-xdev", "-user", str(engine.UID))
    found = engine.docker(
        "run", "--rm", "--label", f"{engine.RUN_LABEL}={engine.RUN}", *command, "-not", "-path", "/proc/*"
    )
    assert set(found.split()) == {"/var/lib/shoal", "/join", "/models"}


def test_a_box_that_holds_a_model_runs_the_code_for_this_processor(network: Any) -> None:
    box = Box("lone-1", network, holds=True).start()
    try:
        box.ready()
        answer = box.ask()
        assert answer.status_code == 200, answer.text
        maps = box.run("sh", "-c", "cat /proc/[0-9]*/maps 2>/dev/null")
        (variant,) = set(re.findall(r"libggml-cpu-(\w+)\.so", maps))
        flags = set(Path("/proc/cpuinfo").read_text().split())
        if "avx2" in flags and "fma" in flags:
            assert variant in ("haswell", "alderlake", "icelake", "zen4")
    finally:
        box.remove()


def test_a_slim_image_says_what_to_do_about_models(network: Any) -> None:
    box = Box("lone-2", network, holds=True, image=engine.SLIM).start()
    try:
        eventually(lambda: box.status("/healthz") == 200, "the agent answers")
        eventually(lambda: box.get("/v1/fleet/self")["models"][0]["state"] == "failed", "its model has failed", LIMIT)
        refused = box.ask()
        assert refused.status_code in (500, 503)
        assert "this box has no engine" in refused.text
        assert "run the image shoal-agent" in refused.text
        (warning,) = (one for one in box.get("/v1/fleet/self")["warnings"] if one["code"] == "engine_missing")
        assert "shoal-agent" in warning["remedy"]
    finally:
        box.remove()
