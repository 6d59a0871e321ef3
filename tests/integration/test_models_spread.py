"""A fleet of four agents: a model is added on one, placed on three, and a copy that is lost is made good elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import run_shoal
from tests.harness import Agent, agents, model_path, seed_of

NAMES = ("till-1", "till-2", "till-3", "till-4")
MODEL = "smollm2-135m-instruct"
LIMIT = 60.0
CONFIG: dict[str, Any] = {
    "labels": {"site": "berlin"},
    "engine": {"context_tokens": 512, "slots": 1, "threads": 1},
    "transfer": {"gone_after": 2, "keep_free": "64MiB"},
}


def shoal(box: Agent, *args: str) -> dict[str, Any]:
    """A command on a box, as the fleet's admin; its JSON."""
    key = box.folder.parent / "admin.key"
    if not key.exists():
        key.write_text(seed_of(f"admin of {box.fleet.genesis.name}").hex())
        key.chmod(0o600)
    command = [*args, "--config", str(box.config_file), "-o", "json"]
    if args[:2] in (("models", "add"), ("models", "place")):
        command += ["--admin-key", str(key)]
    done = run_shoal(command, folder=box.folder)
    assert done.code == 0, (args, done, box.log())
    found: dict[str, Any] = json.loads(done.out)
    return found


def eventually(what: Callable[[], Any], box: Agent, limit: float = LIMIT) -> Any:
    """What is looked at once it is true of it; it fails with what was seen last, and the box's log."""
    end = time.monotonic() + limit
    while True:
        found = what()
        if found or time.monotonic() > end:
            assert found, f"not within {limit} s: {placement(box)}\n{box.log()}"
            return found
        time.sleep(0.2)


def placement(box: Agent) -> dict[str, Any]:
    """The only placement as a box sees it; empty before it has heard of it."""
    found = httpx.get(f"{box.url}/v1/fleet/placements", timeout=30).json()["placements"]
    return found[0] if found else {}


def holders(box: Agent) -> set[str]:
    """The boxes that are to hold the model, are there, and do."""
    boxes = placement(box).get("boxes", ())
    return {
        one["name"] for one in boxes if one["role"] in ("home", "stand-in") and one["complete"] == 1 and not one["gone"]
    }


def serves(box: Agent) -> bool:
    """Whether a box answers with its own copy."""
    answer = httpx.post(
        f"{box.url}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        headers={"X-Shoal-Offload": "never"},
        timeout=LIMIT,
    )
    return answer.status_code == 200 and answer.headers["x-shoal-served-by"] == box.name


@pytest.mark.model
def test_a_model_that_is_added_on_one_box_is_served_by_three_and_a_lost_copy_is_made_good(tmp_path: Path) -> None:
    with agents(tmp_path, dict.fromkeys(NAMES, CONFIG)) as boxes:
        by_name = {box.name: box for box in boxes}
        added = shoal(boxes[0], "models", "add", str(model_path()), "--name", MODEL)
        assert added["size_bytes"] == model_path().stat().st_size

        def refused() -> str:
            """Why the box does not delete its copy; what the fleet calls it, it first has to read in the document."""
            answer = httpx.post(f"{boxes[0].url}/v1/fleet/models/remove", json={"model": MODEL}, timeout=30)
            code = str(answer.json()["error"]["code"])
            return "" if code == "model_not_found" else code

        assert eventually(refused, boxes[0]) == "last_copy"
        placed = shoal(boxes[0], "models", "place", MODEL, "--on", "site=berlin,ram>=1GB", "--min", "3", "--max", "3")
        assert sum(one["role"] == "home" for one in placed["boxes"]) == 3

        for box in boxes:
            eventually(lambda box=box: len(holders(box)) == 3, box)
        chosen = holders(boxes[0])
        assert all(holders(box) == chosen for box in boxes)  # each works it out for itself
        for name in chosen:
            eventually(lambda name=name: serves(by_name[name]), by_name[name])
        (spare,) = (box for box in boxes if box.name not in chosen)
        assert not serves(spare)
        explained = shoal(spare, "placements", "explain", MODEL)["placements"][0]["boxes"]
        assert {one["why"] for one in explained if one["name"] == spare.name} == {"enough others have it"}

        lost = by_name[sorted(chosen - {"till-1"})[0]]
        lost.kill()
        eventually(lambda: spare.name in holders(spare), spare)
        eventually(lambda: serves(spare), spare)
        left = [box for box in boxes if box is not lost]
        for box in left:
            eventually(lambda box=box: holders(box) == {one.name for one in left}, box)

        lost.start()
        eventually(lambda: not any(one["gone"] for one in placement(spare)["boxes"]), spare)
        assert len(holders(spare)) == 3  # nothing has moved back
