"""The fleet document between real agents: joining, spreading, revoking, and accounts that nobody can raise himself."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import trio

from fleet.document.bundle import write_bundle
from fleet.document.op import write_op
from fleet.errors import FleetError
from fleet.identity.keys import Identity, public_key_from_peer_id
from tests.harness import Agent, Fleet, agents, holding_smollm2, peer_id_of, seed_of
from tests.integration.test_admission import lay_down
from tests.integration.test_forwarding import peers, wait_until
from tests.peer import fake_model, peer

MODEL = "smollm2-135m-instruct"


def boxes(box: Agent) -> dict[str, dict[str, Any]]:
    """What a box says of every box of the fleet, by name."""
    found = httpx.get(f"{box.url}/v1/fleet/boxes", timeout=10).json()
    return {one["name"]: one for one in found["boxes"]}


def fleet(box: Agent) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{box.url}/v1/fleet/boxes", timeout=10).json()["fleet"]
    return found


def models(box: Agent) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{box.url}/v1/models", timeout=10).json()["data"]
    return found


def states(outcomes: list[dict[str, Any]]) -> list[str]:
    return [outcome["state"] for outcome in outcomes]


def newcomer(tmp_path: Path, name: str, token: str, fleet: Fleet) -> Agent:
    """A box that belongs to no fleet and has a token."""
    return Agent(tmp_path / name, name, {}, {"SHOAL_JOIN_TOKEN": token}, fleet)


def ask(box: Agent, **changes: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, **changes}
    return httpx.post(f"{box.url}/v1/chat/completions", json=body, timeout=60)


def test_b32_a_new_box_joins_with_a_token_and_every_box_sees_it(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}, fresh=True) as (one, two):
        token = one.fleet.invite(one.p2p_addr)
        assert states(one.offer(token.op)) == ["new"]
        new = newcomer(tmp_path, "pos-3", token.text(), one.fleet)
        try:
            new.start()
            new.wait_line("join.done", 20)
            for box in (one, two, new):
                wait_until(lambda box=box: {"pos-1", "pos-2", "pos-3"} <= set(boxes(box)), 30)  # type: ignore[misc]
            wait_until(lambda: all(p["connected"] for p in peers(new)) and len(peers(new)) == 2, 30)
            assert fleet(new)["id"] == one.fleet.genesis.fleet_id.hex()
            # It belongs for good: the token is used up, and not needed at the next start.
            new.kill()
            new.start()
            wait_until(lambda: {"pos-1", "pos-2", "pos-3"} <= set(boxes(new)))
        finally:
            new.kill()


def test_a_token_is_good_for_as_many_boxes_as_it_says_and_the_others_are_told(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}}) as (one,):
        token = one.fleet.invite(one.p2p_addr, uses=1)
        one.offer(token.op)
        first = newcomer(tmp_path, "first", token.text(), one.fleet)
        second = newcomer(tmp_path, "second", token.text(), one.fleet)
        bound = one.fleet.invite(one.p2p_addr, bound_to=peer_id_of("first"))
        one.offer(bound.op)
        third = newcomer(tmp_path, "third", bound.text(), one.fleet)
        expired = one.fleet.invite(one.p2p_addr, ttl=-1)
        one.offer(expired.op)
        fourth = newcomer(tmp_path, "fourth", expired.text(), one.fleet)
        try:
            first.start()
            first.wait_line("join.done", 20)
            second.start()
            assert "used up" in second.wait_line("join.given_up", 20)["reason"]
            third.start()
            assert "another box's key" in third.wait_line("join.given_up", 20)["reason"]
            fourth.start()
            # Its key is no longer let past the handshake; whether time will help is not for the stranger to know.
            assert "refused" in fourth.wait_line("join.waiting", 20)["reason"]
            assert set(boxes(one)) >= {"pos-1", "first"}
            assert not {"second", "third", "fourth"} & set(boxes(one))
        finally:
            for box in (first, second, third, fourth):
                box.kill()


def test_two_partitions_redeem_one_single_use_invite_and_agree_who_was_first(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}, connect=False) as (one, two):
        token = one.fleet.invite(one.p2p_addr)
        for box in (one, two):
            box.offer(token.op)
        a = newcomer(tmp_path, "box-a", token.text(), one.fleet)
        elsewhere = type(token)(token.genesis, token.op, token.secret, (two.p2p_addr,))
        b = newcomer(tmp_path, "box-b", elsewhere.text(), one.fleet)
        try:
            a.start()
            a.wait_line("join.done", 20)
            b.start()
            b.wait_line("join.done", 20)
            for box in (one, two):
                box.stop()
            one.dial(two)
            for box in (one, two):
                box.start()
            for box in (one, two):
                wait_until(lambda box=box: fleet(box)["contested_invites"] != {}, 30)  # type: ignore[misc]
            admitted = [{name for name, known in boxes(box).items() if known["admitted"]} for box in (one, two)]
            assert admitted[0] == admitted[1]
            assert len({"box-a", "box-b"} & admitted[0]) <= 1
            keys = {box["peer_id"] for box in boxes(one).values()}
            assert a.peer_id in keys
            assert b.peer_id not in keys, "the later countersignature lost"
            # An admin settles it for good.
            one.offer(*one.fleet.certify(b.peer_id))
            wait_until(lambda: b.peer_id in {box["peer_id"] for box in boxes(two).values()}, 30)
            assert fleet(one)["contested_invites"] == {}
        finally:
            a.kill()
            b.kill()


def test_b28_a_revoke_cuts_a_running_stream_on_every_reachable_box_within_10_s(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2(), "pos-1": {}}) as (sensor, jetson, pos):
        wait_until(lambda: MODEL in httpx.get(f"{sensor.url}/v1/models").text)
        wait_until(lambda: len(peers(pos)) == 2 and all(p["connected"] for p in peers(pos)))
        ended: list[tuple[float, list[str]]] = []

        def stream() -> None:
            lines = []
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a very long story."}]}
            with httpx.stream(
                "POST",
                f"{sensor.url}/v1/chat/completions",
                json={**body, "stream": True, "max_tokens": 3000, "temperature": 0},
                timeout=60,
            ) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    if len(lines) > 20:
                        running.set()
            ended.append((time.monotonic(), lines))

        running = threading.Event()
        reader = threading.Thread(target=stream)
        reader.start()
        assert running.wait(60)
        # Written on a third box, which has no part in the stream.
        began = time.monotonic()
        assert states(pos.offer(pos.fleet.revoke(sensor.peer_id))) == ["new"]
        reader.join(30)
        (at, lines), *_ = ended
        assert at - began <= 10
        assert not any("[DONE]" in line for line in lines)
        assert any('"error"' in line for line in lines)
        end = jetson.wait_line("job.lent_end", 10)
        assert end["outcome"] == "cancelled"
        for box in (jetson, pos):
            wait_until(
                lambda box=box: sensor.peer_id not in [p["peer_id"] for p in peers(box) if p["connected"]],  # type: ignore[misc]
                10,
            )
        assert time.monotonic() - began <= 15
        assert ask(sensor).status_code in (403, 503)


def test_a_box_that_was_away_learns_of_a_revoke_before_it_serves_anyone(tmp_path: Path) -> None:
    with agents(tmp_path, {"jetson-1": holding_smollm2(), "pos-1": {}, "thief": {}}) as (jetson, pos, thief):
        wait_until(lambda: MODEL in httpx.get(f"{thief.url}/v1/models").text)
        assert ask(thief).status_code == 200
        jetson.stop()
        pos.offer(pos.fleet.revoke(thief.peer_id))
        wait_until(lambda: thief.peer_id not in [p["peer_id"] for p in peers(pos) if p["connected"]])
        jetson.start()
        served = len([r for r in jetson.lines if r["event"] == "job.lent"])
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:  # it asks all the time, from the first moment on
            assert ask(thief).status_code != 200
        assert len([r for r in jetson.lines if r["event"] == "job.lent"]) == served
        wait_until(lambda: [p["name"] for p in peers(jetson) if p["connected"]] == ["pos-1"])


def test_a_box_that_stood_still_learns_of_a_revoke_before_it_serves_anyone(tmp_path: Path) -> None:
    """As a laptop that slept, or a container that was paused: its links seem to be up when it goes on."""
    with agents(tmp_path, {"jetson-1": holding_smollm2(), "pos-1": {}, "thief": {}}) as (jetson, pos, thief):
        wait_until(lambda: MODEL in httpx.get(f"{thief.url}/v1/models").text)
        wait_until(lambda: len([p for p in peers(jetson) if p["connected"]]) == 2)
        assert ask(thief).status_code == 200
        jetson.send(signal.SIGSTOP)
        asleep = time.monotonic()
        pos.offer(pos.fleet.revoke(thief.peer_id))
        wait_until(lambda: thief.peer_id not in [p["peer_id"] for p in peers(pos) if p["connected"]])
        while time.monotonic() < asleep + 8:
            assert ask(thief).status_code != 200
        served = len([r for r in jetson.lines if r["event"] == "job.lent"])
        jetson.send(signal.SIGCONT)
        jetson.wait_line("gossip.stood_still", 10)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            assert ask(thief).status_code != 200
        assert len([r for r in jetson.lines if r["event"] == "job.lent"]) == served
        wait_until(lambda: [p["name"] for p in peers(jetson) if p["connected"]] == ["pos-1"])


def test_a_box_meets_a_member_that_came_while_it_was_away_and_learns_of_a_revoke_from_it(tmp_path: Path) -> None:
    """The only box that it knew is gone, and was shut out meanwhile: the configuration names the new one."""
    fleet = Fleet()
    gone = peer_id_of("gone")
    away, new = (Agent(tmp_path / name, name, {}, {}, fleet) for name in ("away", "new"))
    first = fleet.certify(gone, away.peer_id)
    lay_down(away, first)
    lay_down(new, [*first, *fleet.certify(new.peer_id), fleet.revoke(gone)])
    away.dial(new)
    try:
        new.start()
        away.start()
        wait_until(lambda: [p["name"] for p in peers(away) if p["connected"]] == ["new"], 15)
        wait_until(lambda: boxes(away).get("new", {}).get("standing") == boxes(new)["new"]["standing"], 15)
        assert boxes(away)["new"]["version"]
        found = httpx.get(f"{away.url}/v1/fleet/boxes", timeout=10).json()["boxes"]
        assert [one["admitted"] for one in found if one["peer_id"] == gone] in ([], [False])
    finally:
        away.kill()
        new.kill()


def test_several_joins_at_once_make_one_member_with_one_document(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}) as (one, two):
        token = one.fleet.invite(one.p2p_addr, two.p2p_addr, uses=5)
        assert states(one.offer(token.op)) == ["new"]
        new = Agent(tmp_path / "new", "new", {}, {}, one.fleet)
        try:
            new.start()
            answers: list[httpx.Response] = []
            asking = [
                threading.Thread(
                    target=lambda: answers.append(
                        httpx.post(f"{new.url}/v1/fleet/join", json={"token": token.text()}, timeout=60)
                    )
                )
                for _ in range(5)
            ]
            for one_more in asking:
                one_more.start()
            for one_more in asking:
                one_more.join(60)
            assert [answer.status_code for answer in answers] == [200] * 5, [answer.text for answer in answers]
            assert all(answer.json()["joined"] for answer in answers)
            assert len([line for line in new.lines if line["event"] == "document.open"]) == 1
            one.offer(one.fleet.revoke(two.peer_id))
            wait_until(lambda: two.peer_id not in [p["peer_id"] for p in peers(new) if p["connected"]], 15)
        finally:
            new.kill()


def test_b30_a_member_writes_its_own_entries_only(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}) as (one, _two):
        wait_until(lambda: {"pos-1", "pos-2"} <= set(boxes(one)))
        evil = Identity.from_seed(seed_of("pos-2"))
        fleet_id = one.fleet.genesis.fleet_id

        def signed(kind: Any, path: str, body: object, seq: int = 1000) -> Any:
            return write_op(evil, fleet_id, seq=seq, hlc=1, kind=kind, path=path, body=body)

        victim = public_key_from_peer_id(one.peer_id).hex()
        refused = one.offer(
            signed("fw", victim, ["deny", []]),
            signed("revoke", victim, 0),
            signed("cert", victim, "admin"),
            signed("cfg", "policy/firewall", {"mode": "allow-list"}),
        )
        assert [(r["state"], r["reason"]) for r in refused] == [("refused", "unknown_author")] * 4
        mine = write_op(evil, fleet_id, seq=1001, hlc=1, kind="node", path="node", body={"name": "pos-1"})
        forged = mine.raw[:-64] + bytes(64)
        text = "".join(write_bundle(None, [forged]))
        answer = httpx.post(f"{one.url}/v1/fleet/document/offer", content=text).json()
        assert answer["outcomes"][0]["reason"] == "signature"
        assert boxes(one)["pos-1"]["peer_id"] == one.peer_id


def test_the_firewall_narrows_what_a_member_may_do_and_widens_it_again(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}) as (sensor, jetson):
        wait_until(lambda: MODEL in httpx.get(f"{sensor.url}/v1/models").text)
        assert ask(sensor).status_code == 200
        deny = jetson.fleet.firewall(sensor.peer_id, "deny", "infer")
        jetson.offer(deny)
        assert ask(sensor).status_code != 200
        assert [p["connected"] for p in peers(sensor)] == [True], "only the scope is gone, not the member"
        lift = jetson.fleet.firewall(sensor.peer_id, "allow", sup=[deny.id])
        jetson.offer(lift)
        assert ask(sensor).status_code == 200


def test_accounts_are_what_the_others_say(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}) as (sensor, jetson):
        wait_until(lambda: MODEL in httpx.get(f"{sensor.url}/v1/models").text)
        tokens = ask(sensor, max_tokens=8).json()["usage"]["completion_tokens"]
        assert 0 < tokens <= 8
        wait_until(lambda: boxes(jetson).get("jetson-1", {}).get("given", {}).get("jobs") == 1, 45)
        assert boxes(jetson)["jetson-1"]["given"]["tokens"] == tokens
        assert boxes(jetson)["sensor-1"]["used"] == {"jobs": 1, "tokens": tokens, "failures": 0}
        assert fleet(jetson)["used"]["jobs"] == 1
        sensor.kill()
        sensor.start()  # goes on counting where it was
        wait_until(lambda: MODEL in httpx.get(f"{sensor.url}/v1/models").text)
        assert ask(sensor, max_tokens=8).status_code == 200
        wait_until(lambda: boxes(jetson)["sensor-1"]["used"]["jobs"] == 2, 45)


def test_changes_made_apart_come_together(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}, "pos-3": {}}) as (one, two, three):
        wait_until(lambda: len(boxes(three)) == 3 and all(b["version"] for b in boxes(three).values()))
        three.stop()
        value = {"source": "hub"}
        one.offer(one.fleet.write("cfg", "model/smol", value))
        wait_until(lambda: fleet(two)["ops"] == fleet(one)["ops"])
        before = fleet(two)["ops"]
        three.start()
        wait_until(lambda: fleet(three)["ops"] >= before, 30)
        exported = httpx.get(f"{three.url}/v1/fleet/document/ops").text
        assert exported.startswith("shoal-ops-1\ngenesis ")


def test_b26_knowing_an_id_gives_nothing_without_its_key(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}}) as (one,):

        async def stranger(box: Agent, knock: Callable[[], Any] | None = None) -> None:
            async with peer("pos-1-impostor", [box], models=[fake_model()]) as me:
                try:
                    with trio.fail_after(3):
                        await me.link_to(box)
                except (trio.TooSlowError, FleetError):
                    return
                raise AssertionError("a stranger got a link")

        trio.run(stranger, one)
        assert json.dumps(peers(one)).count("impostor") == 0


def test_two_live_boxes_with_one_key_are_named_and_do_not_shout_at_one_another(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}) as (one, two):
        wait_until(lambda: {"pos-1", "pos-2"} <= set(boxes(one)))
        before = fleet(one)["ops"]
        clone = Agent(tmp_path / "clone", "pos-2", {}, {}, one.fleet)
        clone.fleet.certify_in(clone.folder / "state", one.peer_id, two.peer_id)
        clone.dial(one)
        try:
            clone.start()
            wait_until(lambda: "identity_cloned" in {w["code"] for w in warnings_of(two)}, 40)
            wait_until(lambda: "identity_cloned" in {w["code"] for w in warnings_of(clone)}, 40)
            assert set(boxes(one)) == {"pos-1", "pos-2"}
            assert fleet(one)["ops"] <= before + 2, "they replace one another's facts; nothing piles up"
            written = [r for box in (two, clone) for r in box.lines if r["event"] == "identity.cloned"]
            assert len(written) <= 6
        finally:
            clone.kill()


def warnings_of(box: Agent) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()["warnings"]
    return found


def test_accounts_outlive_a_stop(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}) as (sensor, jetson):
        wait_until(lambda: MODEL in httpx.get(f"{sensor.url}/v1/models").text)
        for _ in range(2):  # the second comes too soon after the first to be written by itself
            assert ask(sensor).status_code == 200
        wait_until(lambda: boxes(jetson)["sensor-1"]["used"]["jobs"] >= 1, 45)
        assert sensor.stop() == 0
        sensor.start()
        wait_until(lambda: boxes(jetson)["sensor-1"]["used"]["jobs"] == 2, 20)


def test_nothing_is_borrowed_from_a_guest_or_from_a_box_that_only_holds_a_token(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}}) as (one,):
        token = one.fleet.invite(one.p2p_addr)
        guest = peer_id_of("guest")
        one.offer(token.op, one.fleet.firewall(guest, "allow", "infer"))

        async def scenario(box: Agent) -> None:
            holding = {"models": [fake_model()]}
            async with peer("guest", [box], **holding) as me, peer("", [box], seed=token.secret.seed, **holding) as it:
                await me.link_to(box)
                await it.link_to(box)
                await trio.to_thread.run_sync(wait_until, lambda: sum(p["connected"] for p in peers(box)) == 2)
                assert all(p["models"] == [] for p in peers(box))
                assert models(box) == []
                events, error = await it.infer(box, {"v": 1, "job": "j", "kind": "completion", "model": "x"})
                assert (events, error is not None and error.remote_code) == ([], "denied")

        trio.run(scenario, one)


def test_a_box_that_lost_its_document_serves_nobody_and_gets_it_back_from_the_others(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}) as (one, two):
        wait_until(lambda: {"pos-1", "pos-2"} <= set(boxes(one)))
        held = fleet(two)["ops"]
        one.stop()
        database = one.folder / "state" / "fleet" / "document.db"
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        database.write_bytes(b"\xff" * 3000 + database.read_bytes()[3000:])
        one.start()
        assert any(record["event"] == "document.set_aside" for record in one.lines)
        wait_until(lambda: fleet(one)["ops"] >= held, 30)
        wait_until(lambda: set(boxes(one)) == {"pos-1", "pos-2"}, 30)
        wait_until(lambda: all(p["connected"] for p in peers(one)) and len(peers(one)) == 1)
        assert database.with_name("document.db.corrupt-1").exists()
