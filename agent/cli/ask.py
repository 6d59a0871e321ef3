"""Commands that ask a running agent: chat, peers, models, doctor."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from agent.cli import exits
from agent.cli.client import AgentClient, ClientError, agent_options
from agent.cli.output import fail, output_option, print_json, styled, table


@click.command()
@click.argument("text")
@click.option("--model", help="the model to ask  [default: the first that can be asked]")
@click.option("--system", help="a system message")
@click.option("--max-tokens", type=click.IntRange(min=1), help="stop after this many tokens")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always picks the likeliest token")
@click.option("--seed", type=int, help="same seed, same answer")
@click.option("--no-stream", is_flag=True, help="print the answer when it is complete")
@click.option("--offload", type=click.Choice(["never", "prefer", "require"]), default="prefer", show_default=True)
@click.option("--resume", is_flag=True, help="if the serving box fails, go on on another one")
@agent_options
@output_option
def chat(
    text: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    no_stream: bool,
    offload: str,
    resume: bool,
    url: str,
    api_key_file: Path | None,
    form: str,
) -> None:
    """Ask a question; '-' reads it from standard input."""
    if text == "-":
        text = sys.stdin.read()
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    headers = {"X-Shoal-Offload": offload, "X-Shoal-On-Interrupt": "resume" if resume else "error"}
    try:
        client = AgentClient(url, api_key_file)
        if model is None:
            model = _first_model(client)
        optional = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        body = {"model": model, "messages": messages, **{k: v for k, v in optional.items() if v is not None}}
        if no_stream or form == "json":
            answer, answer_headers = client.post("/v1/chat/completions", body, headers)
            _print_answer(answer, answer_headers["x-shoal-job"], form)
        else:
            _stream_answer(client, body, headers)
    except ClientError as error:
        fail(form, error.code, error.message, error.details)


def _first_model(client: AgentClient) -> str:
    models = client.get("/v1/models")["data"]
    if not models:
        raise ClientError(
            "no_capable_peer", "no model is held here or by a connected box; see `shoal peers` and `shoal doctor`"
        )
    return str(models[0]["id"])


def _print_answer(answer: dict[str, Any], job: str, form: str) -> None:
    text = answer["choices"][0]["message"]["content"]
    shoal, usage = answer["shoal"], answer["usage"]
    if form == "json":
        print_json(
            {
                "text": text,
                "model": answer["model"],
                "served_by": shoal["served_by"],
                "peer_id": shoal["peer_id"],
                "local": shoal["local"],
                "route": shoal["route"],
                "finish_reason": answer["choices"][0]["finish_reason"],
                "usage": usage,
                "prefill_ms": shoal["prefill_ms"],
                "decode_ms": shoal["decode_ms"],
                "job": job,
            }
        )
        return
    click.echo(text)
    _footer(f"{shoal['served_by']} served {answer['model']}", shoal["route"], f"{usage['completion_tokens']} tokens")


def _stream_answer(client: AgentClient, body: dict[str, Any], headers: dict[str, str]) -> None:
    began, first, tokens = time.monotonic(), None, 0
    shoal: dict[str, Any] = {}
    last = began
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("/v1/chat/completions", streamed, headers) as events:
        try:
            for event in events:
                shoal = event.get("shoal", shoal)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
                if piece:
                    last = time.monotonic()
                    first = first or last
                    click.echo(piece, nl=False)
        finally:
            click.echo()
    if first is None:
        first = last
    rate = f", {(tokens - 1) / (last - first):.1f} tok/s" if tokens > 1 and last > first else ""
    figures = f"first token after {(first - began) * 1000:.0f} ms{rate}, {tokens} tokens"
    _footer(f"{shoal.get('served_by')} served {body['model']}", shoal.get("route", []), figures)


def _footer(who: str, route: list[str], figures: str) -> None:
    click.echo(styled(f"[{who}; {'; '.join(route)}; {figures}]", dim=True), err=True)


@click.command()
@agent_options
@output_option
def peers(url: str, api_key_file: Path | None, form: str) -> None:
    """List the boxes this one knows, and how they are."""
    try:
        found = AgentClient(url, api_key_file).get("/v1/fleet/peers")
    except ClientError as error:
        fail(form, error.code, error.message, error.details)
    if form == "json":
        print_json(found)
        return
    rows = []
    for peer in found["peers"]:
        rtt = f"{peer['rtt_ms']:.1f} ms" if peer.get("rtt_ms") is not None else "-"
        models = ", ".join(model["name"] for model in peer["models"]) if peer["connected"] else ""
        rows.append((peer["name"], peer["state"], rtt, peer["peer_id"], models or peer.get("last_error") or "-"))
    if rows:
        click.echo(table(("NAME", "STATE", "RTT", "PEER ID", "MODELS"), rows))
    else:
        click.echo("no other box is known; add net.peers and net.allow to the configuration")


@click.command()
@agent_options
@output_option
def models(url: str, api_key_file: Path | None, form: str) -> None:
    """List the models that can be asked for here, and which boxes hold them."""
    try:
        found = AgentClient(url, api_key_file).get("/v1/models")
    except ClientError as error:
        fail(form, error.code, error.message, error.details)
    if form == "json":
        print_json({"models": [{"name": model["id"], **model["shoal"]} for model in found["data"]]})
        return
    rows = []
    for model in found["data"]:
        holders = ", ".join(_holder(holder) for holder in model["shoal"]["holders"])
        rows.append((model["id"], str(model["shoal"]["context_tokens"]), model["shoal"]["hash"][7:19], holders))
    if rows:
        click.echo(table(("MODEL", "CONTEXT", "HASH", "HELD BY"), rows))
    else:
        click.echo("no model is held here or by a connected box")


def _holder(holder: dict[str, Any]) -> str:
    rate = f", {holder['decode_rate']:.0f} tok/s" if holder.get("decode_rate") else ""
    here = " (this box)" if holder["local"] else ""
    return f"{holder['name']}{here} [{holder['state']}{rate}]"


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="also check this configuration file")
@agent_options
@output_option
def doctor(path: Path | None, url: str, api_key_file: Path | None, form: str) -> None:
    """Say what is wrong with this box, and what to do about it. Exit code 5 if something is."""
    warnings = _check_files(path) if path is not None else []
    facts: dict[str, Any] = {}
    try:
        client = AgentClient(url, api_key_file)
        facts = client.get("/v1/fleet/self")
        warnings += facts["warnings"]
        ready = client.get("/readyz")
        if not ready["ready"]:
            text = "; ".join(ready["reasons"])
            warnings.append(_warning("not_ready", "warning", "the agent is not ready", text, "wait, then look again"))
    except ClientError as error:
        if form == "text" and not warnings:
            fail(form, error.code, error.message, error.details)
        remedy = "start it with: shoal run --config FILE"
        warnings.append(_warning(error.code, "error", "the agent cannot be asked", error.message, remedy))
    if form == "json":
        print_json({"agent": {k: facts.get(k) for k in ("peer_id", "name", "version", "state")}, "warnings": warnings})
    else:
        for warning in warnings:
            colour = {"error": "red", "warning": "yellow"}.get(warning["severity"], "blue")
            click.echo(f"{styled(warning['severity'].upper(), fg=colour)}  {warning['title']}")
            click.echo(f"  {warning['text']}\n  -> {warning['remedy']}\n")
        if facts:
            click.echo(f"{facts['name']} ({facts['peer_id']}), {facts['version']}, {facts['state']}")
        if not warnings:
            click.echo("nothing is wrong")
    codes = {warning["code"] for warning in warnings}
    if "agent_unreachable" in codes:
        sys.exit(exits.UNREACHABLE)
    sys.exit(exits.DEGRADED if any(w["severity"] != "info" for w in warnings) else exits.OK)


def _check_files(path: Path) -> list[dict[str, Any]]:
    """What can be wrong before an agent even starts."""
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError
    from fleet.identity import keys

    try:
        config = load(path)
    except ConfigError as error:
        return [
            _warning("config", "error", "the configuration cannot be used", error.message, "correct the lines named")
        ]
    found = []
    try:
        keys.load(config.seed_file or config.state_dir / "identity.seed", create=False)
    except IdentityError as error:
        found.append(_warning("identity", "error", "the identity cannot be used", error.message, "do what it says"))
    for model in config.models:
        if not model.path.is_file():
            text = f"{model.path} is not a file"
            found.append(_warning("model_missing", "error", "a model file is missing", text, "correct models[].path"))
    return found


def _warning(code: str, severity: str, title: str, text: str, remedy: str) -> dict[str, Any]:
    return {"code": code, "severity": severity, "title": title, "text": text, "remedy": remedy}
