"""Jobs across containers with the real model: borrowing, and what ends it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.containers.box import MODEL, Box, boxes, document_of, eventually
from tests.containers.conftest import Timed
from tests.harness import Fleet

pytestmark = pytest.mark.model


def test_a_box_borrows_and_a_revoke_cuts_its_running_stream(network: Any, timed: Timed) -> None:
    fleet = Fleet()
    with timed("two boxes, connected"):
        started = boxes(network, ["till-1", "jetson-1"], holders=["jetson-1"], fleet=fleet)
        till, jetson = started.__enter__()
    try:
        eventually(till.knows_model, "the till knows the model")
        whole = till.ask()
        assert whole.status_code == 200, whole.text
        assert whole.headers["x-shoal-served-by"] == "jetson-1"
        with till.streaming() as answer:
            assert answer.more()
            with timed("from a revoke to the end of a running stream"):
                jetson.offer(fleet.revoke(till.peer_id))
                answer.rest()
        assert not answer.done
        assert answer.error is not None
        assert "the key is no longer allowed" in answer.error["message"], answer.error
        assert till.ask().status_code in (403, 503)
        assert "jetson-1" not in till.connected()
    finally:
        started.__exit__(None, None, None)


def test_a_box_from_outside_the_fleet_is_refused(network: Any) -> None:
    with boxes(network, ["jetson-2"], holders=["jetson-2"]) as (jetson,):
        # It believes that both are members, by a document of its own making.
        forged = document_of(Fleet("other-fleet"), ["stranger", "jetson-2"])
        stranger = Box("stranger", network, document=forged, peers=["jetson-2"]).start()
        try:
            stranger.ready()
            eventually(lambda: [p["state"] for p in stranger.get("/v1/fleet/peers")["peers"]] == ["refused"], "refused")
            answer = stranger.ask()
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "refused"
            assert stranger.peer_id in jetson.log()
            assert not jetson.connected()
        finally:
            stranger.remove()


def test_a_provider_that_is_killed_in_mid_answer_comes_back_as_it_was(network: Any, timed: Timed) -> None:
    with boxes(network, ["till-3", "jetson-3"], holders=["jetson-3"]) as (till, jetson):
        eventually(till.knows_model, "the till knows the model")
        before = jetson.get("/v1/fleet/self")
        document = jetson.governance()
        with till.streaming() as answer:
            assert answer.more()
            with timed("from kill -9 of the provider to the client's error"):
                jetson.kill()
                answer.rest()
        assert not answer.done
        assert answer.error is not None
        assert answer.error["code"] == "interrupted", answer.error
        with timed("the provider's new start, to ready"):
            jetson.again().ready()
        after = jetson.get("/v1/fleet/self")
        assert after["peer_id"] == before["peer_id"]
        assert [model["hash"] for model in after["models"]] == [model["hash"] for model in before["models"]]
        assert jetson.governance() == document
        with timed("from ready to an answer that is borrowed again"):
            eventually(lambda: till.ask().status_code == 200, "the till is answered again")


def test_a_provider_that_stands_still_costs_its_client_seconds(network: Any, timed: Timed) -> None:
    with boxes(network, ["till-4", "jetson-4"], holders=["jetson-4"], config={"timeouts": {"inter_token": 3}}) as (
        till,
        jetson,
    ):
        eventually(till.knows_model, "the till knows the model")
        with till.streaming() as answer:
            assert answer.more()
            raw = jetson.raw
            raw.pause()
            try:
                with timed("from a pause of the provider to the client's error"):
                    answer.rest()
            finally:
                raw.unpause()
        assert answer.error is not None
        assert not answer.done
        eventually(lambda: till.ask().status_code == 200, "the till is answered again")


def test_a_kernel_that_takes_the_engine_for_memory_leaves_the_agent(network: Any, timed: Timed) -> None:
    with boxes(network, ["till-5", "jetson-5"], holders=["jetson-5"], memory="900m") as (till, jetson):
        eventually(till.knows_model, "the till knows the model")
        assert till.ask().status_code == 200
        born = jetson.raw.attrs["State"]["StartedAt"]
        # What it allocates does not fit beside the agent and the engine. The kernel takes whom it is told to first.
        hog = "import mmap\nm = mmap.mmap(-1, 700 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1\n"
        with till.streaming() as answer:
            assert answer.more()
            with timed("from the start of what takes the engine's memory to the client's error"):
                jetson.raw.exec_run(["python3", "-c", hog], detach=True)
                answer.rest()
        assert answer.error is not None, "the engine outlived what took its memory"
        state = jetson.raw.attrs["State"]
        assert state["Running"]
        assert state["StartedAt"] == born  # the agent itself was never started again
        with timed("from there to the next answer"):
            eventually(lambda: till.ask().status_code == 200, "the engine is back")


def test_a_box_that_hears_nothing_of_one_neighbour_goes_on_with_another(network: Any, timed: Timed) -> None:
    from tests.containers.faults import unheard

    with boxes(network, ["till-6", "jetson-6", "jetson-7"], holders=["jetson-6", "jetson-7"]) as (till, one, _):
        eventually(till.knows_model, "the till knows the model")
        served: set[str] = set()
        with unheard(till, [one]):
            with timed("five questions with one of two providers unheard"):
                for _ in range(5):
                    answer = till.ask()
                    assert answer.status_code == 200, answer.text
                    served.add(answer.headers["x-shoal-served-by"])
            assert "jetson-7" in served
        eventually(lambda: "jetson-6" in till.connected(), "the link is back")


def test_the_api_needs_its_key(network: Any) -> None:
    with boxes(network, ["lone-3"]) as (box,):
        assert httpx.get(f"{box.url}/v1/models", timeout=10).status_code == 401
        assert httpx.get(f"{box.url}/readyz", timeout=10).status_code == 200
        assert MODEL not in str(box.get("/v1/models"))
