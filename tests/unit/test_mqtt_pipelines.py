"""Sensor pipelines without a broker: what is read, how it is collected, what is asked, and the recorded examples."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import manifests
from agent.cli.pipelines import pipelines
from agent.errors import BadRequestError
from agent.manifests.kinds import PipelineSpec
from agent.manifests.read import read_manifests
from agent.mqtt.collecting import MAX_VALUES, Collected, Collector, Mode, Rules
from agent.mqtt.home_assistant import device
from agent.mqtt.pipeline import MAX_TOPICS, Gathering, Pipeline, PipelineError, pipeline_of
from agent.mqtt.pipeline_checks import mistakes_in
from agent.mqtt.readings import BadReadingError, Reading, read
from agent.mqtt.recorded import read_recorded, replay
from agent.mqtt.template import MAX_PART, fill, template_problem
from agent.mqtt.topics import Topics

TOPICS = Topics("shops", "0123456789abcdef")
EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
BASE: dict[str, Any] = {"topics": ["shop/+/temp"], "model": "smol", "prompt": "It is {value}."}


def made(**spec: Any) -> Pipeline:
    return pipeline_of("watch", PipelineSpec.model_validate({**BASE, **spec}), TOPICS)


def reading(value: float | str, at: float = 0.0, fields: Any = None) -> Reading:
    return Reading(at, "shop/b/temp", value, fields)


@pytest.mark.parametrize(
    ("payload", "path", "value"),
    [
        (b"82.5", None, 82.5), (b" -3 ", None, -3.0), (b"open", None, "open"), (b"true", None, "true"),
        (b'{"t": 4}', "t", 4.0), (b'{"a": {"b": [1, 2]}}', "a.b.1", 2.0), (b'{"t": true}', "t", "true"),
        (b'[{"t": "x"}]', "0.t", "x"), (b'"text"', None, '"text"'),
    ],
)  # fmt: skip
def test_a_value_is_found_where_it_stands(payload: bytes, path: str | None, value: float | str) -> None:
    assert read("t", payload, 0.0, path).value == value


@pytest.mark.parametrize(
    ("payload", "path", "kind"),
    [
        (b"\xff", None, "sensor_not_utf8"), (b"x" * 70_000, None, "sensor_too_large"), (b"", None, "sensor_bad"),
        (b"1e400", None, "sensor_bad"), (b'{"t": 1e400}', "t", "sensor_bad"), (b'{"t": null}', "t", "sensor_bad"),
        (b'{"t": {}}', "t", "sensor_bad"), (b"82", "t", "sensor_bad"), (b'{"x": 1}', "t", "sensor_bad"),
        (b"{", None, "sensor_bad"), (b'{"a":' * 20 + b"1" + b"}" * 20, None, "sensor_bad"),
        (b"a\0b", None, "sensor_bad"),
        (b"[1]", "9.x", "sensor_bad"),
    ],
)  # fmt: skip
def test_what_says_nothing_is_counted_by_its_kind(payload: bytes, path: str | None, kind: str) -> None:
    with pytest.raises(BadReadingError) as caught:
        read("t", payload, 0.0, path)
    assert caught.value.kind == kind


@given(st.binary(max_size=300), st.sampled_from([None, "a", "a.0.b"]))
def test_no_payload_does_anything_but_be_read_or_refused(payload: bytes, path: str | None) -> None:
    gathering = Gathering(made(prompt="{payload.a} {values} {mean}", value=path))
    with contextlib.suppress(BadReadingError):
        gathering.take("shop/b/temp", payload, 1e18, 0.0)


def collected(mode: Mode, values: list[tuple[float, float | str]], **rules: Any) -> list[Collected]:
    collector = Collector(Rules(mode, **rules))
    found = [collector.take(reading(value, at), at) for at, value in values]
    return [one for one in found if one is not None]


def test_every_message_is_a_prompt() -> None:
    assert [one.last.value for one in collected("every", [(0, 1.0), (1, "x"), (2, 3.0)])] == [1.0, "x", 3.0]


def test_a_sample_is_the_first_and_then_one_in_so_many_seconds() -> None:
    found = collected("sample", [(at, float(at)) for at in range(25)], seconds=10)
    assert [one.last.value for one in found] == [0.0, 10.0, 20.0]


def test_a_window_of_so_many_has_their_figures() -> None:
    found = collected("window", [(0, 1.0), (1, 5.0), (2, 3.0), (3, 9.0)], count=3)
    assert [(one.count, one.least, one.most, one.mean, one.last.value) for one in found] == [(3, 1.0, 5.0, 3.0, 3.0)]


def test_a_window_of_time_ends_with_the_next_message_or_by_itself() -> None:
    collector = Collector(Rules("window", seconds=10))
    assert collector.take(reading(1.0), 0.0) is None
    assert collector.ends == 10.0
    assert collector.due(9.9) is None
    assert collector.take(reading(2.0), 5.0) is None
    ended = collector.take(reading(7.0), 12.0)
    assert ended is not None
    assert (ended.count, ended.mean) == (2, 1.5)
    assert collector.due(21.9) is None
    last = collector.due(22.0)
    assert last is not None
    assert (last.last.value, last.before, collector.ends, collector.due(99.0)) == (7.0, 2.0, None, None)


def test_a_change_beyond_the_band_is_measured_from_the_last_prompt() -> None:
    values = [(0, 20.0), (1, 21.0), (2, 21.4), (3, 21.6), (4, 20.2), (5, 20.0), (6, "broken"), (7, "broken")]
    found = collected("change", values, band=1.5)
    assert [(one.last.value, one.before) for one in found] == [
        (20.0, None),
        (21.6, 20.0),
        (20.0, 21.6),
        ("broken", 20.0),
    ]


def test_values_are_kept_bounded_and_figures_are_of_all() -> None:
    count = MAX_VALUES + 500
    (found,) = collected("window", [(at, float(at)) for at in range(count)], count=count)
    assert (len(found.readings), found.count, found.least, found.most) == (MAX_VALUES, count, 0.0, count - 1.0)


def test_topics_are_told_apart_and_bounded() -> None:
    gathering = Gathering(made(collect={"mode": "window", "count": 2}))
    for number in range(MAX_TOPICS + 5):
        assert gathering.take(f"shop/{number}/temp", b"1", 0.0, 0.0) is None
    assert gathering.forgotten == 5
    assert gathering.take("shop/7/temp", b"3", 0.0, 0.0) is not None
    assert gathering.take("shop/0/temp", b"3", 0.0, 0.0) is None


def test_a_message_that_lacks_what_the_prompt_wants_costs_its_window_nothing() -> None:
    gathering = Gathering(made(prompt="{count} {payload.door}", value="t", collect={"mode": "window", "count": 2}))
    take = lambda payload: gathering.take("shop/b/temp", payload, 0.0, 0.0)  # noqa: E731
    assert take(b'{"t": 1, "door": "open"}') is None
    with pytest.raises(BadReadingError):
        take(b'{"t": 2}')
    prompt = take(b'{"t": 3, "door": "shut"}')
    assert prompt is not None
    assert prompt.text == "2 shut"


def test_a_template_is_filled_once_and_what_is_put_in_is_never_read_as_one() -> None:
    fields = {"note": "{topic} {{x}}", "items": ["milk"]}
    found = Collected((reading(1.0), reading(2.5, 1_767_225_600.0, fields)), 2, 61.0, 1.0, 2.5, 1.75, 2.0)
    text = (
        "{topic.1}|{value}|{first}|{values}|{min}|{max}|{mean}|{change}|{count}|{seconds}|{time}|"
        "{payload.note}|{payload.items.0}|{{}}"
    )
    assert fill(text, found) == "b|2.5|1|1, 2.5|1|2.5|1.75|0.5|2|61|2026-01-01T00:00:00Z|{topic} {{x}}|milk|{}"
    with pytest.raises(BadReadingError):
        fill("{payload.nothing}", found)
    with pytest.raises(BadReadingError):
        fill("{payload.x}", Collected((reading(1.0),), 1, 0.0))
    long = Collected((reading("x" * 100_000),), 1, 0.0)
    assert len(fill("{value}", long)) == MAX_PART


@pytest.mark.parametrize(
    "text", ["{", "}", "{nonsense}", "{value.__class__}", "{payload.a b}", "{0}", "{}", "{topic.x}"]
)
def test_a_template_names_only_what_there_is(text: str) -> None:
    assert template_problem(text)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"topics": ["a#"]}, "topics"),
        ({"topics": ["$SYS/#"]}, "topics"),
        ({"topics": ["#"]}, "answers go to"),
        ({"topics": ["shoal/v1/{fleet}/{node}/insight/+"]}, "answers go to"),
        ({"topics": ["out"], "publish": "out"}, "answers go to"),
        ({"topics": ["shoal/v1/shops/infer/request"]}, "requests"),
        ({"publish": "a/+"}, "publish"),
        ({"publish": "shoal/v1/shops/fedcba9876543210/insight/x"}, "publish"),
        ({"publish": "homeassistant/x"}, "publish"),
        ({"prompt": "{x}"}, "prompt"),
        ({"answer": {"type": "nonsense"}}, "answer"),
        ({"collect": {"mode": "sample"}}, "needs seconds"),
        ({"collect": {"mode": "window"}}, "needs count or seconds"),
        ({"collect": {"mode": "change"}}, "needs band"),
        ({"collect": {"mode": "every", "band": 1.0}}, "band"),
        ({"topics": ["shoal/v1/shops/+/availability"]}, "boxes say"),
        ({"topics": ["shoal/v1/+/+/lease/+"]}, "boxes say"),
    ],
)
def test_a_pipeline_that_cannot_run_says_why(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(PipelineError) as caught:
        made(**spec)
    assert said in caught.value.message


def test_a_pipeline_is_a_job_that_obeys_its_schema() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    pipeline = made(answer=schema, system="Be short.", topics=["shoal/v1/{fleet}/{node}/sensor/+"])
    assert pipeline.wants("shoal/v1/shops/0123456789abcdef/sensor/s1")
    request = pipeline.job("pipe-1", "What?").request
    assert (request.v, request.output, json.loads(request.output_text)) == (2, "schema", schema)
    assert ([turn.role for turn in request.messages], request.priority) == (["system", "user"], "bulk")
    found = Collected((reading(2.0, 5.0),), 1, 0.0, 2.0, 2.0, 2.0)
    insight = json.loads(pipeline.insight(found, '{"ok": true}', {"served_by": "jetson-1"}))
    assert (insight["answer"], insight["of"]["last"], insight["served_by"]) == ({"ok": True}, 2.0, "jetson-1")
    with pytest.raises(ValueError):
        pipeline.insight(found, '{"ok": tr', {})


def test_home_assistant_gets_a_device_with_an_entity_for_each_simple_value() -> None:
    schema = {
        "type": "object",
        "properties": {"status": {"enum": ["ok"]}, "alarm": {"type": "boolean"}, "more": {"type": "array"}},
    }
    body = json.loads(device("till-1", "1.0", TOPICS, [made(answer=schema), made(prompt="x")]).payload)
    assert body["device"]["identifiers"] == ["shoal_0123456789abcdef"]
    assert {"connected", "jobs", "models", "watch_status", "watch_alarm"} <= set(body["components"])
    status = body["components"]["watch_status"]
    assert status["state_topic"] == "shoal/v1/shops/0123456789abcdef/insight/watch"
    assert 'value_json.answer["status"]' in status["value_template"]
    assert body["components"]["watch_alarm"]["platform"] == "binary_sensor"
    ids = [one["unique_id"] for one in body["components"].values()]
    assert len(set(ids)) == len(ids)
    assert all(
        "platform" in one and "availability_topic" in one
        for key, one in body["components"].items()
        if key != "connected"
    )


def test_home_assistant_is_told_which_entities_are_gone() -> None:
    first = device("till-1", "1.0", TOPICS, [made()])
    second = device("till-1", "1.0", TOPICS, [], first.platforms)
    third = device("till-1", "1.0", TOPICS, [], second.platforms)
    assert json.loads(second.payload)["components"]["watch"] == {"platform": "sensor"}
    assert third == second
    again = device("till-1", "1.0", TOPICS, [made()], third.platforms)
    assert again.payload == first.payload
    many = device("till-1", "1.0", TOPICS, [], {f"old_{number}": "sensor" for number in range(1000)})
    assert len(many.platforms) < 100


def test_a_recording_is_read_in_both_forms_and_says_which_line_is_wrong() -> None:
    lines = ['{"at": 5, "topic": "a", "payload": {"t": 1}}', "", '{"topic": "b", "payload": "x"}',
             '{"tst": "2026-01-01T00:00:10.5+0000", "topic": "c", "qos": 0, "payload": "3"}',
             '{"tst":"2026-01-01T02:00:11.671762Z+0200","topic":"d","qos":0,"retain":0,"payloadlen":1,"payload":"4"}',
             '{"topic": "e", "payload": "caf\udce9"}']  # fmt: skip
    found = list(read_recorded(lines))
    assert [(one.topic, one.payload) for one in found] == [("a", b'{"t": 1}'), ("b", b"x"), ("c", b"3"),
                                                           ("d", b"4"), ("e", b"caf\xe9")]  # fmt: skip
    assert [one.at for one in found][:4] == [5.0, 5.0, 1767225610.5, 1767225611.671762]
    for bad in (
        "x", "[]", '{"topic": 1, "payload": ""}', '{"topic": "t"}', '{"topic": "t", "payload": "", "at": "x"}',
        f'{{"topic": "t", "payload": "", "at": {"9" * 400}}}', '{"topic": "t", "payload": "", "tst": "noon"}',
    ):  # fmt: skip
        with pytest.raises(BadRequestError) as caught:
            list(read_recorded([lines[0], bad]))
        assert caught.value.message.startswith("line 2")


def test_a_rate_limit_holds_in_a_dry_run_too() -> None:
    pipeline = made(max_per_minute=6)
    steps = list(
        replay(
            pipeline, read_recorded(json.dumps({"at": at, "topic": "shop/b/temp", "payload": at}) for at in range(60))
        )
    )
    assert sum(step.prompt is not None for step in steps) == 6
    assert {step.problem for step in steps if step.prompt is None} == {"more than max_per_minute"}


@pytest.mark.parametrize(("name", "prompts", "passed"), [("fridge-compressor", 6, 2), ("pos-receipts", 6, 1)])
def test_the_examples_make_of_their_recordings_what_they_are_for(name: str, prompts: int, passed: int) -> None:
    recording = str(EXAMPLES / "messages" / f"{name}.jsonl")
    done = CliRunner().invoke(pipelines, ["try", str(EXAMPLES / f"{name}.yaml"), "--messages", recording, "-o", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["pipeline"], found["prompts"], found["passed_over"]) == (name, prompts, passed)
    texts = [step["prompt"] for step in found["steps"] if "prompt" in step]
    assert all("unknown" not in text and "{" not in text for text in texts)
    if name == "fridge-compressor":
        assert max(step["of"]["max"] for step in found["steps"] if "of" in step) > 95


def test_a_dry_run_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("kind: Pipeline\nname: p\nspec: {topics: [t], model: m, prompt: '{nonsense}'}\n")
    recording = str(EXAMPLES / "messages" / "pos-receipts.jsonl")
    done = CliRunner().invoke(pipelines, ["try", str(file), "--messages", recording])
    assert done.exit_code != 0
    assert "p.yaml:3: spec.prompt: {nonsense}" in done.output
    file.write_bytes(b"\xff\xfe")
    done = CliRunner().invoke(pipelines, ["try", str(file), "--messages", recording])
    assert "is not UTF-8 text" in done.output


def test_a_dry_run_of_bytes_that_are_no_text_passes_them_over(tmp_path: Path) -> None:
    recording = tmp_path / "r.jsonl"
    recording.write_bytes(b'{"topic":"pos/t1/receipt","payload":"\xff\xfe"}\n')
    done = CliRunner().invoke(
        pipelines, ["try", str(EXAMPLES / "pos-receipts.yaml"), "--messages", str(recording)], catch_exceptions=False
    )
    assert "passed over: it is not UTF-8" in done.output


def test_every_mistake_of_a_pipeline_is_named_with_its_line() -> None:
    text = """
kind: Pipeline
name: p
spec:
  topics:
    - shop/+/door
    - shop/#/door
  model: m
  collect: {mode: window}
  prompt: |
    It is {valu}.
  answer:
    type: nonsense
  publish: homeassistant/x
"""
    (manifest,) = read_manifests([("p.yaml", text)])
    found = mistakes_in(manifest)
    assert [mistake.split(": ")[:2] for mistake in found] == [
        ["p.yaml:7", "spec.topics"], ["p.yaml:9", "spec.collect"], ["p.yaml:10", "spec.prompt"],
        ["p.yaml:12", "spec.answer"], ["p.yaml:14", "spec.publish"],
    ]  # fmt: skip
    assert "needs count or seconds" in found[1]
    assert "spec.answer: at /type of the schema" in found[3]
    for example in EXAMPLES.glob("*.yaml"):
        written = read_manifests([(example.name, example.read_text("utf-8"))])
        assert not [one for manifest in written if manifest.kind == "Pipeline" for one in mistakes_in(manifest)]


def test_the_fleets_pipelines_are_checked_before_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("kind: Pipeline\nname: p\nspec: {topics: [t], model: m, prompt: '{nonsense}'}\n")
    for command in ("apply", "diff"):
        done = CliRunner().invoke(getattr(manifests, command), ["-f", str(tmp_path)])
        assert "p.yaml:3: spec.prompt: {nonsense} is nothing that can be put in" in done.output
