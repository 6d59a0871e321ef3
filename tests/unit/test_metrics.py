"""The page of metrics: its names and meanings as the documentation has them, and labels that nobody can multiply."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from agent.engine.pool import HeldModel
from agent.jobs.distribution import TOKEN_GAPS, Distribution
from agent.jobs.observation import Observation
from agent.jobs.outcome import Outcome
from agent.observe.counts import MAX_BORROWED, MAX_OF_PEER, MAX_OWN, JobCounts, ModelNames
from agent.observe.metrics import MAX_VALUES, METRICS, Gauges, Metrics
from agent.reconcile.gauges import ModelGauges

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
DONE = Outcome(at=0.0, job="j", role="asker", outcome="ok", model="smol", route="local", tokens=3, prompt_tokens=5)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def seen(*gaps: float) -> Observation:
    found = Observation("asker", 0.0, job="j", kind="chat", asked="", peer="", parent=None)
    for gap in gaps:
        found.gaps.add(gap)
    return found


def page(
    counts: JobCounts | None = None, held: Sequence[HeldModel] = (), refused: Mapping[str, int] | None = None
) -> str:
    now = Gauges(
        version="1.2.3",
        running=2,
        held=held,
        links={"inbound": 1},
        neighbours={"connected": 1, "unreachable": 2},
        gate={"inbound": 4},
        refused=refused or {},
        ops=10,
        ops_accepted=7,
        ops_refused={"signature": 1},
        audit_lines=5,
        audit_waiting=0,
        audit_lost=1,
        audit_taken_together=9,
        models=ModelGauges(received=5, wasted=2, given=7, fetches={"done": 3}, refused={"nameless": 6}, stored=4),
    )
    return Metrics(counts or JobCounts(), lambda: now).text().decode()


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_documentation_names_every_metric_and_no_other() -> None:
    rows = re.findall(
        r"^\| `((?:shoal|process)_\w+)` \| (\w+) \|([^|]*)\|([^|]*)\|$", DOCUMENT.read_text("utf-8"), re.M
    )
    shown = re.findall(r"^# TYPE (\w+) (\w+)$", page(), re.M)
    assert sorted((name, kind) for name, kind, _, _ in rows) == sorted(shown)
    described = {name: (tuple(re.findall(r"`(\w+)`", labels)), meaning.strip()) for name, _, labels, meaning in rows}
    assert {m.name: (m.labels, m.meaning) for m in METRICS} == {
        name: value for name, value in described.items() if name.startswith("shoal_")
    }


def test_jobs_are_counted_by_what_came_of_them() -> None:
    counts = JobCounts()
    counts.note(replace(DONE, queue_ms=2.0, first_token_ms=120.0, total_ms=300.0), seen(0.09, 0.09))
    counts.note(replace(DONE, route="peer", peer="P", first_token_ms=40.0), seen())
    counts.note(replace(DONE, outcome="refused", error="overloaded", model="", route="none", tokens=0), seen())
    counts.note(replace(DONE, role="lender", peer="P", queue_ms=1.0), seen())
    counts.note(replace(DONE, repeats="job-0"), seen())
    found = samples(page(counts))

    def of(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    jobs = "shoal_jobs_total"
    assert of(jobs, role="asker", model="smol", route="local", outcome="ok") == 2
    assert of(jobs, role="asker", model="smol", route="peer", outcome="ok") == 1
    assert of(jobs, role="asker", model="", route="none", outcome="refused") == 1
    assert of(jobs, role="lender", model="smol", route="local", outcome="ok") == 1
    assert of("shoal_job_errors_total", role="asker", code="overloaded") == 1
    assert of("shoal_tokens_total", role="asker", model="smol", direction="out") == 6
    assert of("shoal_tokens_total", role="lender", model="smol", direction="in") == 5
    assert of("shoal_route_decisions_total", reason="local") == 1
    assert of("shoal_route_decisions_total", reason="repeated") == 1
    assert of("shoal_route_decisions_total", reason="overloaded") == 1
    assert of("shoal_first_token_seconds_bucket", route="local", le="0.1") == 0
    assert of("shoal_first_token_seconds_bucket", route="local", le="0.25") == 1
    assert of("shoal_first_token_seconds_count", route="local") == 1
    assert of("shoal_inter_token_seconds_bucket", route="local", le="0.1") == 2
    assert of("shoal_inter_token_seconds_sum", route="local") == 0.18
    assert of("shoal_queue_wait_seconds_count", route="lent") == 1
    assert of("shoal_ops_refused_total", reason="signature") == 1
    assert of("shoal_gate_refusals_total", reason="inbound") == 4
    assert of("shoal_links", direction="inbound") == 1
    assert of("shoal_audit_lost_total") == 1
    assert of("shoal_model_bytes_total", direction="in") == 5
    assert of("shoal_model_bytes_total", direction="out") == 7
    assert of("shoal_model_fetches_total", outcome="done") == 3
    assert of("shoal_fast_lane_refusals_total", reason="nameless") == 6
    assert of("process_resident_memory_bytes") > 1 << 20


def test_models_held_here_are_shown_by_name() -> None:
    held = HeldModel("sha256:0", "smol", "loaded", 2048, 31.5, None, running=2, queued=3, slots=4, error=None)
    found = samples(page(held=[held, replace(held, name="other-model", decode_rate=None)]))
    model = (("model", "smol"),)
    assert [found[f"shoal_{name}", model] for name in ("queue_depth", "slots_busy", "slots")] == [3, 2, 4]
    assert found["shoal_decode_tokens_per_second", model] == 31.5


def test_no_peer_can_multiply_labels() -> None:
    names = ModelNames()
    flood = {names.label(f"m{n}", "flooder") for n in range(1000)}
    assert len(flood) == MAX_OF_PEER + 1
    assert "other" in flood
    assert names.label("honest", "another") == "honest"
    others = {names.label(f"n{n}", f"peer{n}") for n in range(1000)}
    assert len(others) <= MAX_BORROWED
    assert len({names.label(f"own{n}") for n in range(1000)}) == MAX_OWN + 1
    assert names.label("own0") == "own0"
    for text in ("a b", 'x"\n', "x" * 300, "\ud800", "é"):
        assert names.label(text, "peer") == "other"
    assert names.label("") == ""


def test_reasons_are_bounded_and_none_is_left_out() -> None:
    found = samples(page(refused={f"reason-{n:04d}": 1 for n in range(1000)}))
    shown = {labels: value for (name, labels), value in found.items() if name == "shoal_peer_refusals_total"}
    assert len(shown) == MAX_VALUES + 1
    assert sum(shown.values()) == 1000


def test_nothing_is_registered_for_the_process_and_no_thread_is_started() -> None:
    before = set(prometheus_client.REGISTRY._names_to_collectors)
    threads = threading.active_count()
    page()
    assert set(prometheus_client.REGISTRY._names_to_collectors) == before
    assert threading.active_count() == threads


def test_distributions_add_up() -> None:
    one, two = Distribution(TOKEN_GAPS), Distribution(TOKEN_GAPS)
    one.add(0.02)
    one.add(99.0)
    two.add(0.021, times=3)
    one.merge(two)
    assert dict(one.cumulative())["0.02"] == 1
    assert dict(one.cumulative())["0.03"] == 4
    assert one.cumulative()[-1] == ("+Inf", 5)
