"""Metrics for Prometheus: collected when they are asked for, from what the parts of an agent count anyway.

The registry is this agent's own: what libraries register in the process's default one is not shown. The names stand in
METRICS alone, and docs/metrics.md has the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from agent.engine.pool import HeldModel
from agent.mqtt.gauges import MqttGauges
from agent.observe.counts import OTHER, Histograms, JobCounts, ModelNames
from agent.reconcile.gauges import ModelGauges

#: Of the text format 0.0.4.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Values of a label that one family shows; the counts of those that come after are added up as `other`.
MAX_VALUES: Final = 64

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One family: its name as it is shown, its labels, and what it means."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


METRICS: Final = (
    Metric("shoal_info", "gauge", ("version",), "always 1; the label is the version that runs"),
    Metric("shoal_jobs_total", "counter", ("role", "model", "route", "outcome"), "jobs that have ended"),
    Metric("shoal_job_errors_total", "counter", ("role", "code"), "jobs that ended with an error, by its code"),
    Metric("shoal_tokens_total", "counter", ("role", "model", "direction"), "tokens of prompts and answers"),
    Metric("shoal_route_decisions_total", "counter", ("reason",), "clients' jobs by why they ran where they did"),
    Metric("shoal_queue_wait_seconds", "histogram", ("route",), "from taking a job until a box began with it"),
    Metric("shoal_first_token_seconds", "histogram", ("route",), "from taking a job until its first token"),
    Metric("shoal_inter_token_seconds", "histogram", ("route",), "between two tokens of an answer"),
    Metric("shoal_job_seconds", "histogram", ("route",), "from taking a job until its end, where it ended well"),
    Metric("shoal_jobs_running", "gauge", (), "jobs that this box runs, waits for, or lends itself to, now"),
    Metric("shoal_queue_depth", "gauge", ("model",), "jobs that wait for a slot of a model held here"),
    Metric("shoal_slots_busy", "gauge", ("model",), "jobs in the engine of a model held here"),
    Metric("shoal_slots", "gauge", ("model",), "jobs that a model held here runs at a time"),
    Metric("shoal_decode_tokens_per_second", "gauge", ("model",), "the rate measured of a model held here"),
    Metric("shoal_model_memory_bytes", "gauge", ("model",), "what a model held here takes of the memory for all"),
    Metric("shoal_links", "gauge", ("direction",), "connections to other boxes, by who dialled"),
    Metric("shoal_neighbours", "gauge", ("state",), "boxes that this one keeps a connection to, or tries to"),
    Metric("shoal_gate_refusals_total", "counter", ("reason",), "connections that were turned away"),
    Metric("shoal_peer_refusals_total", "counter", ("reason",), "calls and messages of peers that were refused"),
    Metric("shoal_ops", "gauge", (), "ops of the fleet document held"),
    Metric("shoal_ops_accepted_total", "counter", (), "ops that were new and were accepted"),
    Metric("shoal_ops_refused_total", "counter", ("reason",), "ops that were refused"),
    Metric("shoal_audit_lines_total", "counter", (), "lines written to the audit trail"),
    Metric("shoal_audit_waiting", "gauge", (), "lines of the audit trail that wait for the disk"),
    Metric("shoal_audit_lost_total", "counter", (), "outcomes that could not be written to the audit trail"),
    Metric("shoal_audit_taken_together_total", "counter", (), "refusals told as part of a number"),
    Metric("shoal_models_stored", "gauge", (), "whole models in the store for others"),
    Metric("shoal_model_fetches_running", "gauge", (), "models that are fetched now"),
    Metric("shoal_model_fetches_total", "counter", ("outcome",), "fetches of models that have ended"),
    Metric("shoal_model_followers", "gauge", (), "boxes that fetch a model from this one now"),
    Metric(
        "shoal_model_bytes_total",
        "counter",
        ("direction",),
        "bytes of models' blocks that came, and that were given",
    ),
    Metric(
        "shoal_model_wasted_bytes_total",
        "counter",
        (),
        "bytes of them that came for nothing",
    ),
    Metric(
        "shoal_fast_lane_refusals_total",
        "counter",
        ("reason",),
        "connections for blocks that were turned away",
    ),
    Metric("shoal_mqtt_connected", "gauge", (), "1 while there is a connection to the MQTT broker"),
    Metric("shoal_mqtt_jobs", "gauge", ("state",), "jobs that came over MQTT and are not answered"),
    Metric("shoal_mqtt_outbox", "gauge", (), "messages that the MQTT broker has not acknowledged"),
    Metric("shoal_mqtt_events_total", "counter", ("event",), "what happened over MQTT"),
)


@dataclass(frozen=True)
class Gauges:
    """What is asked of the running agent for one page. Counters are of this process, keys of mappings are reasons."""

    version: str
    running: int
    held: Sequence[HeldModel]
    links: Mapping[str, int]
    neighbours: Mapping[str, int]
    gate: Mapping[str, int]
    refused: Mapping[str, int]
    ops: int
    ops_accepted: int
    ops_refused: Mapping[str, int]
    audit_lines: int
    audit_waiting: int
    audit_lost: int
    audit_taken_together: int
    mqtt: MqttGauges = field(default_factory=MqttGauges)
    mqtt_events: Mapping[str, int] = field(default_factory=dict)
    models: ModelGauges = field(default_factory=ModelGauges)


class Metrics:
    """The page of metrics. `look` reads the agent as it is now."""

    def __init__(self, counts: JobCounts, look: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Page(counts, look))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The page, in the text format. Takes about a millisecond."""
        return generate_latest(self._registry)


class _Page(Collector):
    def __init__(self, counts: JobCounts, look: Callable[[], Gauges]) -> None:
        self._counts = counts
        self._look = look

    def describe(self) -> Iterable[Family]:
        """Nothing: without it, registering would collect."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Every family, in the order of METRICS."""
        counts, now = self._counts, self._look()
        held = _by_model(counts.names, now.held)
        values: dict[str, Mapping[tuple[str, ...], float]] = {
            "shoal_info": {(now.version,): 1},
            "shoal_jobs_total": counts.jobs,
            "shoal_job_errors_total": counts.errors,
            "shoal_tokens_total": counts.tokens,
            "shoal_route_decisions_total": counts.routes,
            "shoal_jobs_running": {(): now.running},
            "shoal_queue_depth": {(name,): sum(one.queued for one in models) for name, models in held.items()},
            "shoal_slots_busy": {(name,): sum(one.running for one in models) for name, models in held.items()},
            "shoal_slots": {(name,): sum(one.slots for one in models) for name, models in held.items()},
            "shoal_decode_tokens_per_second": {
                (name,): max(one.decode_rate or 0.0 for one in models) for name, models in held.items()
            },
            "shoal_model_memory_bytes": {
                (name,): sum(one.memory_bytes or 0 for one in models) for name, models in held.items()
            },
            "shoal_links": _by_reason(now.links),
            "shoal_neighbours": _by_reason(now.neighbours),
            "shoal_gate_refusals_total": _by_reason(now.gate),
            "shoal_peer_refusals_total": _by_reason(now.refused),
            "shoal_ops": {(): now.ops},
            "shoal_ops_accepted_total": {(): now.ops_accepted},
            "shoal_ops_refused_total": _by_reason(now.ops_refused),
            "shoal_audit_lines_total": {(): now.audit_lines},
            "shoal_audit_waiting": {(): now.audit_waiting},
            "shoal_audit_lost_total": {(): now.audit_lost},
            "shoal_audit_taken_together_total": {(): now.audit_taken_together},
            "shoal_models_stored": {(): now.models.stored},
            "shoal_model_fetches_running": {(): now.models.fetching},
            "shoal_model_fetches_total": _by_reason(now.models.fetches),
            "shoal_model_followers": {(): now.models.followers},
            "shoal_model_bytes_total": {("in",): now.models.received, ("out",): now.models.given},
            "shoal_model_wasted_bytes_total": {(): now.models.wasted},
            "shoal_fast_lane_refusals_total": _by_reason(now.models.refused),
            "shoal_mqtt_connected": {(): int(now.mqtt.connected)},
            "shoal_mqtt_jobs": {("running",): now.mqtt.running, ("waiting",): now.mqtt.waiting},
            "shoal_mqtt_outbox": {(): now.mqtt.outbox},
            "shoal_mqtt_events_total": _by_reason(now.mqtt_events),
        }
        histograms = {
            "shoal_queue_wait_seconds": counts.queue,
            "shoal_first_token_seconds": counts.first_token,
            "shoal_inter_token_seconds": counts.gap,
            "shoal_job_seconds": counts.length,
        }
        for metric in METRICS:
            if metric.kind == "histogram":
                yield _histogram(metric, histograms[metric.name])
            else:
                yield _family(metric, values[metric.name])


def _family(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    if metric.kind == "counter":
        family: CounterMetricFamily | GaugeMetricFamily = CounterMetricFamily(
            metric.name, metric.meaning, labels=metric.labels
        )
    else:
        family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in sorted(values.items()):
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, histograms: Histograms) -> Family:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for label, found in sorted(histograms.of.items()):
        family.add_metric((label,), found.cumulative(), found.sum)
    return family


def _by_model(names: ModelNames, held: Sequence[HeldModel]) -> dict[str, list[HeldModel]]:
    models: dict[str, list[HeldModel]] = {}
    for one in held:
        models.setdefault(names.label(one.name), []).append(one)
    return models


def _by_reason(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    """Counts by one label, of a bounded number of values."""
    found: dict[tuple[str, ...], float] = {}
    for reason, count in sorted(counts.items()):
        key = (reason,) if len(found) < MAX_VALUES else (OTHER,)
        found[key] = found.get(key, 0) + count
    return found
