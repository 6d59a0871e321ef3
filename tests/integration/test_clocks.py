"""A box whose clock is wrong, as the doctor of another one sees it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import trio

from fleet.document.op import write_op
from fleet.identity.keys import Identity
from tests.harness import Agent, Fleet, peer_id_of, seed_of
from tests.integration.test_admission import lay_down
from tests.peer import peer


def test_a_linked_box_whose_facts_are_dated_an_hour_ahead_is_named(tmp_path: Path) -> None:
    fleet = Fleet()
    box = Agent(tmp_path / "a", "a", {}, {}, fleet)
    lay_down(box, fleet.certify(box.peer_id, peer_id_of("fast")))
    fast = Identity.from_seed(seed_of("fast"))
    ahead = int((time.time() + 3600) * 1000) << 16

    def codes() -> set[str]:
        facts = httpx.get(f"{box.url}/v1/fleet/self", timeout=20).json()
        return {warning["code"] for warning in facts["warnings"]}

    async def linked() -> tuple[set[str], set[str]]:
        async with peer("fast", [box]) as one:
            await one.link_to(box)
            before = await trio.to_thread.run_sync(codes)
            op = write_op(fast, fleet.genesis.fleet_id, seq=1, hlc=ahead, kind="node", path="node", body={"name": "f"})
            await trio.to_thread.run_sync(box.offer, op)
            return before, await trio.to_thread.run_sync(codes)

    try:
        box.start()
        before, after = trio.run(linked)
    finally:
        box.kill()
    assert "clock_behind" not in before
    assert "clock_behind" in after, "nobody else says what time it is"
