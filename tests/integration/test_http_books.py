"""What a box keeps account of, over HTTP: guarded as everything is, streamed, and told of what never became a job."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.command import run_shoal
from tests.http_agent import LIMIT, ScriptedServices, serving

PATHS = ("/metrics", "/v1/audit", "/v1/fleet/leaderboard")
KEY = "k" * 32


@pytest.mark.parametrize("path", PATHS)
def test_the_books_are_open_to_this_machine_or_to_a_key_alone(path: str, tmp_path: Path) -> None:
    with serving(ScriptedServices()) as server:
        assert httpx.get(server.url + path, timeout=LIMIT).status_code == 200
        assert httpx.get(server.url + path, headers={"Host": "evil.example"}, timeout=LIMIT).status_code == 403
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with serving(ScriptedServices(), api_key_file=keys) as server:
        assert httpx.get(server.url + path, timeout=LIMIT).status_code == 401
        assert (
            httpx.get(server.url + path, headers={"Authorization": f"Bearer {KEY}"}, timeout=LIMIT).status_code == 200
        )


def test_what_never_became_a_job_is_told_under_the_id_that_the_client_has() -> None:
    services = ScriptedServices()
    with serving(services) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=b"{", timeout=LIMIT)
    assert services.refused == [(answer.headers["x-shoal-job"], "bad_request")]


def test_lines_are_streamed_and_a_follower_that_leaves_is_let_go() -> None:
    with serving(ScriptedServices()) as server:
        whole = httpx.get(f"{server.url}/v1/audit", timeout=LIMIT)
        assert [json.loads(line)["job"] for line in whole.text.splitlines()] == ["job-1", "job-2"]
        assert httpx.get(f"{server.url}/v1/audit?follow=2", timeout=LIMIT).status_code == 400
        with httpx.stream("GET", f"{server.url}/v1/audit?follow=1", timeout=LIMIT) as response:
            lines = response.iter_lines()
            assert [json.loads(next(lines))["job"] for _ in range(2)] == ["job-1", "job-2"]
        server.stop()  # which it does, at once, although a follower had no end


def test_the_leaderboard_is_printed() -> None:
    box = {
        "rank": 1,
        "peer_id": "12D3KooWpeer",
        "name": "jetson-1\x1b[31m",
        "self": True,
        "tier": "silver",
        "points": 123.456,
        "jobs": 7,
        "tokens": 123456,
        "failures": 1,
        "consumers": 2,
        "record": 0.75,
        "weight": 1.3333,
    }
    services = ScriptedServices(board=[box])
    with serving(services) as server:
        done = run_shoal(["leaderboard", "--url", server.url])
    assert done.code == 0, done
    header, row = done.out.splitlines()
    assert header.split()[:4] == ["#", "NAME", "TIER", "POINTS"]
    assert row.startswith("1  jetson-1\\x1b[31m *  silver  123.5")
