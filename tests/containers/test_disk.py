"""A disk that fills up in the middle of a model's transfer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.containers import engine
from tests.containers.box import KEY, MODEL, Box, boxes, eventually
from tests.containers.conftest import Timed
from tests.harness import Fleet, model_path, seed_of

pytestmark = pytest.mark.model
MIB = 1 << 20


def moved(box: Box) -> int:
    """Bytes of the model that a box has fetched so far."""
    fetched = [one for one in box.get("/v1/fleet/transfers")["transfers"] if one["kind"] == "fetch"]
    return int((fetched[0].get("progress") or {}).get("bytes", 0)) if fetched else 0


def listed(box: Box) -> bool:
    """Whether a box has the fleet's list of models, and the model is in it."""
    return box.status("/v1/fleet/boxes") == 200 and MODEL in str(box.get("/v1/fleet/models")["models"])


def serves_itself(box: Box) -> bool:
    answer = httpx.post(
        f"{box.url}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        headers={"Authorization": f"Bearer {KEY}", "X-Shoal-Offload": "never"},
        timeout=60,
    )
    return answer.status_code == 200 and answer.headers["x-shoal-served-by"] == box.name


def test_a_disk_that_fills_up_during_a_transfer_costs_neither_the_agent_nor_the_model(
    network: Any, timed: Timed
) -> None:
    fleet = Fleet()
    size = model_path().stat().st_size
    # A disk of its own that has room for the model and some more.
    disk = engine.client().volumes.create(
        name=f"shoal-{engine.RUN}-disk",
        driver="local",
        driver_opts={"type": "tmpfs", "device": "tmpfs", "o": f"size={size + 40 * MIB},uid={engine.UID},mode=0700"},
        labels=dict(engine.LABELS),
    )
    config = {"transfer": {"upload_rate": 6 * MIB}}
    with boxes(network, ["jetson-21"], holders=["jetson-21"], fleet=fleet, config=config) as (jetson,):
        token = fleet.invite(f"/dns4/{jetson.alias}/tcp/4210/p2p/{jetson.peer_id}")
        jetson.offer(token.op)
        # The admin's own key, from here on: its next op is numbered after what the document has.
        jetson.run("sh", "-c", f"umask 077 && echo {fleet.admin.seed.hex()} >/var/lib/shoal/admin.key")
        source = f"/models/{model_path().name}"
        added = jetson.shoal("models", "add", source, "--name", MODEL, "--admin-key", "/var/lib/shoal/admin.key")
        assert added["size_bytes"] == size
        till = Box(
            "till-21",
            network,
            image=engine.AGENT,
            state=disk.name,
            config={"transfer": {"keep_free": 2 * MIB}},
            env={"SHOAL_JOIN_TOKEN": token.text(), "SHOAL_IDENTITY_SEED": seed_of("till-21").hex()},
        )
        try:
            with timed("a new box, to a member by its token"):
                till.start().ready()
                eventually(lambda: "jetson-21" in till.connected(), "the new box has joined")
            eventually(lambda: listed(till), "it has learnt of the fleet's models")
            till.post("/v1/fleet/models/pull", {"model": MODEL})
            eventually(lambda: moved(till) > size // 10, "the transfer is under way")
            till.raw.exec_run(["sh", "-c", "cat /dev/zero >/var/lib/shoal/ballast"])  # until there is no room
            at_most = int(till.run("stat", "-f", "-c", "%a", "/var/lib/shoal"))
            assert at_most == 0
            before = moved(till)
            assert before < size, "the disk was to fill up before the end"
            assert till.status("/healthz") == 200
            till.run("rm", "/var/lib/shoal/ballast")
            with timed("from room on the disk to the first answer of the fetched model"):
                eventually(lambda: serves_itself(till), "the fetched model answers")
            assert till.raw.attrs["RestartCount"] == 0
        finally:
            till.remove()
