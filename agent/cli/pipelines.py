"""`shoal pipelines`: the sensor pipelines of the fleet, how they run here, and what one asks of recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import AgentClient, ClientError
from agent.cli.command import Place, box_command
from agent.cli.manifests import manifest_text
from agent.cli.output import print_json, printable, table

if TYPE_CHECKING:
    from agent.mqtt.pipeline import Pipeline
    from agent.mqtt.recorded import Step

_HEADER: Final = ("PIPELINE", "HERE", "MESSAGES", "BAD", "PROMPTS", "ANSWERS", "FAILED", "NOTE")


@click.group()
def pipelines() -> None:
    """Sensor pipelines: messages of sensors in, a model's answers out."""


@pipelines.command("ls")
@box_command
def list_pipelines(place: Place, form: str) -> None:
    """List the pipelines of the fleet, whether they run on this box, and how that goes."""
    client = place.client()
    mqtt = client.get("/v1/fleet/self").get("mqtt")
    if mqtt is None:
        raise ClientError("not_found", "this box has no MQTT broker; set mqtt.url in its configuration")
    with client.understood():
        found = mqtt.get("pipelines", [])
        rows = [_row(one) for one in found]
    if form == "json":
        print_json({"broker": mqtt["broker"], "state": mqtt["state"], "pipelines": found})
        return
    why = f" ({mqtt['problem']})" if mqtt["problem"] else ""
    click.echo(printable(f"broker {mqtt['broker']}: {mqtt['state']}{why}"))
    if rows:
        click.echo(table(_HEADER, rows, rigid=("HERE", "MESSAGES", "BAD", "PROMPTS", "ANSWERS", "FAILED")))
    else:
        click.echo("the fleet has no pipelines; write one: shoal apply --help")


@pipelines.command("try")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--messages",
    required=True,
    type=click.File("r", "utf-8", "surrogateescape"),
    help="recorded messages, one JSON object a line",
)
@click.option("--ask", is_flag=True, help="have each prompt answered, by the box that --url or --config names")
@click.option("--name", help="the pipeline in FILE that is meant, where there are several")
@box_command
def try_pipeline(place: Place, form: str, file: Path, messages: Any, ask: bool, name: str | None) -> None:
    """Say what the pipeline in FILE would ask of recorded messages. Nothing is published, and no broker is needed.

    A line of a recording has topic, payload and at (seconds), or is what `mosquitto_sub -F %j` writes.
    """
    from agent.mqtt.recorded import read_recorded, replay

    pipeline = _read(file, name)
    client = place.client() if ask else None
    steps = []
    prompts = passed = 0
    for step in replay(pipeline, read_recorded(messages)):
        shown = dict(_shown(step))
        prompts += step.prompt is not None
        passed += step.prompt is None
        if client is not None and step.prompt is not None:
            shown |= _answer(client, pipeline, step.prompt.text)
        steps.append(shown)
        if form != "json":
            click.echo(_text(shown))
    if form == "json":
        print_json({"pipeline": pipeline.name, "prompts": prompts, "passed_over": passed, "steps": steps})
    else:
        click.echo(f"{pipeline.name}: {prompts} prompts, {passed} messages passed over")


def _read(file: Path, name: str | None) -> Pipeline:
    """The pipeline in a file of manifests; raises ConfigError and ClientError."""
    from agent.manifests.kinds import PipelineSpec
    from agent.manifests.read import ManifestError, read_manifests
    from agent.mqtt.pipeline import pipeline_of
    from agent.mqtt.pipeline_checks import NOWHERE, mistakes_in

    found = [one for one in read_manifests([(str(file), manifest_text(file))]) if one.kind == "Pipeline"]
    chosen = [one for one in found if name in (None, one.name)]
    if len(chosen) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise ClientError("usage", f"say with --name which pipeline of {file} is meant; there are: {names}")
    if mistakes := mistakes_in(chosen[0]):
        raise ManifestError("\n".join(mistakes), details={"mistakes": mistakes})
    return pipeline_of(chosen[0].name, PipelineSpec.model_validate(dict(chosen[0].spec)), NOWHERE)


def _shown(step: Step) -> Iterator[tuple[str, Any]]:
    from agent.mqtt.template import figures

    yield "at", round(step.at, 3)
    yield "topic", step.topic
    if step.prompt is None:
        yield "passed_over", step.problem
    else:
        yield "of", figures(step.prompt.collected)
        yield "prompt", step.prompt.text


def _answer(client: AgentClient, pipeline: Pipeline, prompt: str) -> dict[str, Any]:
    """A prompt's answer; raises ClientError."""
    import json

    turns = [{"role": "system", "content": pipeline.system}] if pipeline.system else []
    body: dict[str, Any] = {
        "model": pipeline.model,
        "messages": [*turns, {"role": "user", "content": prompt}],
        "max_tokens": pipeline.max_tokens,
        "temperature": 0,
    }
    if pipeline.schema:
        schema = {"name": "answer", "schema": json.loads(pipeline.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    answer = client.post("/v1/chat/completions", body, limit=pipeline.deadline)
    with client.understood():
        text = str(answer["choices"][0]["message"]["content"])
        return {"answer": json.loads(text) if pipeline.schema else text, "served_by": answer["shoal"]["served_by"]}


def _text(step: Mapping[str, Any]) -> str:
    if "passed_over" in step:
        return printable(f"-- {step['topic']}: passed over: {step['passed_over']}")
    lines = [printable(f"-> {step['topic']}"), *(f"   {printable(line)}" for line in str(step["prompt"]).splitlines())]
    if "answer" in step:
        lines.append(printable(f"   = {step['answer']} ({step['served_by']})"))
    return "\n".join(lines)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    counts = one.get("counts", {})
    note = one["error"] if one["here"] else one["why"]
    return (
        str(one["name"]),
        "yes" if one["here"] else "no",
        *(
            str(counts.get(key, 0)) if one["here"] else "-"
            for key in ("messages", "bad", "prompts", "answers", "failed")
        ),
        str(note or "-"),
    )
