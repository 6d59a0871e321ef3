"""The audit trail of two real boxes: what each says of a job that one borrows from the other, however the job ends."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from agent.jobs.repeats import ONE_BY_ONE
from tests.command import Ended, run_shoal
from tests.harness import Agent, agents, holding_smollm2, peer_id_of
from tests.integration.test_forwarding import MODEL, Stream, ask, borrowable, jobs_running, streaming, wait_until
from tests.peer import peer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """A box that borrows, and one that lends."""
    with agents(tmp_path_factory.mktemp("audit"), {"sensor-1": {}, "jetson-1": holding_smollm2()}) as boxes:
        wait_until(lambda: MODEL in borrowable(boxes[0]))
        yield boxes


def outcomes(box: Agent, **asked: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{box.url}/v1/audit", params=asked, timeout=10)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines() if line]


def both(pair: list[Agent], job: str) -> list[dict[str, Any]]:
    """What the asker and the lender say of a job, one line each."""
    found: list[list[dict[str, Any]]] = []

    def there() -> bool:
        found[:] = [outcomes(box, job=job) for box in pair]
        return all(found)

    wait_until(there)
    assert [len(lines) for lines in found] == [1, 1]
    return [lines[0] for lines in found]


def shoal(box: Agent, *arguments: str) -> Ended:
    return run_shoal([*arguments, "--url", box.url])


@pytest.mark.model
def test_b44_a_borrowed_job_is_one_line_on_each_box_in_one_trace(pair: list[Agent]) -> None:
    sensor, jetson = pair
    answer = ask(sensor, max_tokens=12, headers={"traceparent": TRACE})
    job = answer.headers["x-shoal-job"]
    asked, lent = both(pair, job)
    assert (asked["role"], asked["outcome"], asked["route"]) == ("asker", "ok", "peer")
    assert (lent["role"], lent["outcome"], lent["route"]) == ("lender", "ok", "local")
    assert (asked["peer"], asked["peer_name"]) == (jetson.peer_id, "jetson-1")
    assert (lent["peer"], lent["peer_name"]) == (sensor.peer_id, "sensor-1")
    usage = answer.json()["usage"]
    for line in (asked, lent):
        assert (line["kind"], line["model"]) == ("chat", MODEL)
        assert line["hash"] == answer.json()["shoal"]["model_hash"]
        assert (line["prompt_tokens"], line["tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert 0 <= line["queue_ms"] <= line["first_token_ms"] <= line["total_ms"]
    assert lent["total_ms"] <= asked["total_ms"]
    # One trace, a span on each box, each the child of the one before it.
    (_, trace, client, _), (_, mine, here, _), (_, theirs, there, _) = (
        text.split("-") for text in (TRACE, asked["traceparent"], lent["traceparent"])
    )
    assert (mine, theirs) == (trace, trace)
    assert (asked["parent"], lent["parent"]) == (client, here)
    assert len({client, here, there}) == 3
    for box, line in ((sensor, asked), (jetson, lent)):
        wait_until(lambda box=box, line=line: any(r.get("traceparent") == line["traceparent"] for r in box.lines))
    text = answer.json()["choices"][0]["message"]["content"].strip()
    for box in pair:
        for file in (box.folder / "state" / "audit").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert text not in file.read_text()
            assert "lighthouse" not in file.read_text()


@pytest.mark.model
def test_b44_a_job_that_is_refused_is_a_line_on_each_box_that_refused_it(pair: list[Agent]) -> None:
    sensor, jetson = pair
    # Only the box that has the model can count the tokens of a prompt.
    answer = ask(sensor, max_tokens=4, messages=[{"role": "user", "content": "word " * 9000}])
    assert answer.status_code == 400, answer.text
    asked, lent = both(pair, answer.headers["x-shoal-job"])
    assert (asked["outcome"], asked["error"], asked["route"]) == ("refused", "context_length_exceeded", "none")
    assert (lent["outcome"], lent["error"]) == ("refused", "context_length_exceeded")
    assert asked["tried"] == [[jetson.peer_id, "context_length_exceeded"]]
    assert asked["tokens"] == lent["tokens"] == 0
    malformed = httpx.post(f"{sensor.url}/v1/chat/completions", json={"model": 3}, timeout=10)
    (line,) = outcomes(sensor, job=malformed.headers["x-shoal-job"])
    assert (line["outcome"], line["error"], line["role"]) == ("refused", "bad_request", "asker")


@pytest.mark.model
def test_b44_a_job_that_its_client_cuts_is_cancelled_on_both_boxes(pair: list[Agent]) -> None:
    sensor, jetson = pair
    with httpx.Client() as client, streaming(client, sensor) as response:
        job = response.headers["x-shoal-job"]
        stream = Stream(response)
        assert stream.next_text()
        assert stream.next_text()
    asked, lent = both(pair, job)
    for line in (asked, lent):
        assert line["outcome"] == "cancelled"
        assert "error" not in line
        assert 2 <= line["tokens"] < 1500
        assert line["first_token_ms"] <= line["total_ms"]
    wait_until(lambda: jobs_running(jetson) == 0)


@pytest.mark.model
def test_the_trail_is_listed_followed_and_counted(pair: list[Agent]) -> None:
    sensor, jetson = pair
    job = ask(sensor, max_tokens=4).headers["x-shoal-job"]
    both(pair, job)
    as_json = shoal(sensor, "audit", "--job", job, "-o", "json")
    assert as_json.code == 0, as_json.err
    assert json.loads(as_json.out)["peer_name"] == "jetson-1"
    rows = list(csv.DictReader(io.StringIO(shoal(jetson, "audit", "--peer", "sensor-1", "-o", "csv").out)))
    assert rows[-1]["job"] == job
    assert {row["role"] for row in rows} == {"lender"}
    text = shoal(sensor, "audit", "--since", "1h", "--outcome", "ok").out
    assert job in text
    assert "at jetson-1" in text
    wrong = httpx.get(f"{sensor.url}/v1/audit", params={"since": "tomorrow"}, timeout=10)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "since")
    with httpx.stream("GET", f"{sensor.url}/v1/audit", params={"follow": "1", "outcome": "not_there"}) as response:
        lines = response.iter_lines()
        assert next(lines) == ""  # it lives; what comes next is of this job
    command = [sys.executable, "-m", "agent.cli.main", "audit", "-f", "-o", "json", "--url", sensor.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        watchdog = threading.Timer(60, following.kill)
        watchdog.start()
        later = ask(sensor, max_tokens=4).headers["x-shoal-job"]
        assert any(json.loads(line)["job"] == later for line in following.stdout)
        watchdog.cancel()
        following.terminate()
    page = httpx.get(f"{sensor.url}/metrics", timeout=10).text
    assert f'shoal_jobs_total{{model="{MODEL}",outcome="ok",role="asker",route="peer"}}' in page
    assert 'shoal_first_token_seconds_count{route="peer"}' in page
    page = httpx.get(f"{jetson.url}/metrics", timeout=10).text
    assert 'shoal_inter_token_seconds_count{route="lent"}' in page


@pytest.mark.model
def test_a_trail_outlives_a_kill(pair: list[Agent]) -> None:
    _, jetson = pair
    job = ask(jetson, max_tokens=4).headers["x-shoal-job"]
    wait_until(lambda: outcomes(jetson, job=job))
    jetson.kill()
    folder = jetson.folder / "state" / "audit"
    newest = max(folder.iterdir())
    with newest.open("ab") as file:
        file.write(b'{"at":"2026-11-20T00:00:00.000Z","job":"to')
    jetson.start()
    again = httpx.post(f"{jetson.url}/v1/chat/completions", json={"model": 3}, timeout=10).headers["x-shoal-job"]
    wait_until(lambda: outcomes(jetson, job=again))
    assert [line["job"] for line in outcomes(jetson)][-2:] == [job, again]


def test_b44_a_flood_of_refused_calls_is_counted_and_not_written_one_by_one(tmp_path: Path) -> None:
    guest = peer_id_of("guest")
    body = {"job": "job-guest", "kind": "completion", "model": "m", "prompt": "a secret", "route": [guest]}
    with agents(tmp_path, {"jetson-1": {}}) as (jetson,):
        # Let in for blobs alone: every call of `infer` is refused by the firewall, before its handler is asked.
        jetson.offer(jetson.fleet.firewall(guest, "allow", "blobs"))

        async def flood() -> None:
            async with peer("guest", [jetson]) as stranger:
                for _ in range(100):
                    _, error = await stranger.infer(jetson, body)
                    assert error is not None
                    assert error.remote_code == "denied"

        trio.run(flood)
        wait_until(lambda: len(outcomes(jetson, outcome="denied")) == ONE_BY_ONE)
        (first, *_) = outcomes(jetson, peer=guest)
        assert (first["outcome"], first["role"], first["job"], first["asked"]) == (
            "refused",
            "lender",
            "job-guest",
            "m",
        )
        page = httpx.get(f"{jetson.url}/metrics", timeout=10).text
        assert 'shoal_job_errors_total{code="denied",role="lender"} 100.0' in page
        assert f"shoal_audit_taken_together_total {100.0 - ONE_BY_ONE}" in page
        assert jetson.stop() == 0
        written = [json.loads(line) for file in (jetson.folder / "state" / "audit").iterdir() for line in file.open()]
        assert sum(line.get("count", 1) for line in written) == 100
        assert len(written) == ONE_BY_ONE + 1
        assert "secret" not in json.dumps(written)


def test_a_trail_that_cannot_be_written_is_a_warning_with_its_remedy(tmp_path: Path) -> None:
    with agents(tmp_path, {"till-1": {}}) as (till,):
        assert till.stop() == 0
        folder = till.folder / "state" / "audit"
        if folder.exists():
            folder.rename(tmp_path / "aside")
        folder.write_text("in the way")
        till.start()
        httpx.post(f"{till.url}/v1/chat/completions", json={"model": 3}, timeout=10)
        till.wait_line("audit.unwritten")
        facts = httpx.get(f"{till.url}/v1/fleet/self", timeout=10).json()
        (warning,) = [one for one in facts["warnings"] if one["code"] == "audit_unwritten"]
        assert "File exists" in warning["text"]
        assert "free space" in shoal(till, "doctor").out
