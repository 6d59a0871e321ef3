"""`shoal doctor`: what a running agent says is wrong, and what can be seen without one."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from agent.cli import exits
from agent.cli.box import DEFAULT_CONFIG, config_option
from agent.cli.client import AgentClient, ClientError, agent_options
from agent.cli.output import fail, output_option, print_json, printable, styled

if TYPE_CHECKING:
    from agent.config import Config
    from agent.document_disk import Repair

_HEADINGS = {"error": ("ERRORS", "red"), "warning": ("WARNINGS", "yellow"), "info": ("GOOD TO KNOW", "blue")}


@click.command()
@config_option(default=None, help=f"also check this configuration file  [default: {DEFAULT_CONFIG}, if there]")
@click.option(
    "--repair", "mend", is_flag=True, help="check the fleet document on disk and rebuild it; stop the agent first"
)
@agent_options
@output_option
@click.pass_context
def doctor(ctx: click.Context, path: Path | None, mend: bool, url: str, api_key_file: Path | None, form: str) -> None:
    """Say what is wrong with this box, and what to do about it. Exit code 5 if something is.

    Without --url or SHOAL_URL it asks the agent that the configuration file describes.
    """
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    if mend:
        _repair(path, form)
        return
    config, file_warnings = _check_files(path) if path is not None else (None, [])
    if config is not None and ctx.get_parameter_source("url") is ParameterSource.DEFAULT:
        url = _own_url(config)
        if api_key_file is None and not os.environ.get("SHOAL_API_KEY"):
            api_key_file = config.http.api_key_file
    warnings: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    failure: ClientError | None = None
    try:
        facts, warnings = _ask(AgentClient(url, api_key_file))
    except ClientError as error:
        failure = error
        remedy = _remedy(error.code, path)
        warnings.append(_warning(error.code, "error", "the agent cannot be asked", error.message, remedy))
    warnings += file_warnings
    if (
        path is not None
        and config is not None
        and failure is not None
        and failure.code in ("agent_unreachable", "bad_answer")
    ):
        warnings += [*_check_ports(config), *_check_document(config, path)]
    if form == "json":
        agent = {key: facts.get(key) for key in ("peer_id", "name", "version", "state")}
        print_json({"agent": agent, "config": str(path) if path else None, "warnings": warnings})
    else:
        _print(facts, path, warnings)
    if failure is not None:
        sys.exit(exits.exit_code(failure.code))
    sys.exit(exits.DEGRADED if any(warning["severity"] != "info" for warning in warnings) else exits.OK)


def _repair(path: Path | None, form: str) -> None:
    from agent.config_file import load
    from agent.document_disk import repair
    from agent.errors import AgentError
    from fleet.errors import FleetError

    if path is None:
        raise click.UsageError("say which box with --config FILE: the document is in its state_dir")
    try:
        done = repair(load(path).state_dir)
    except (AgentError, FleetError) as error:
        fail(form, error.code, error.message)
    except OSError as error:
        fail(form, "store", f"cannot repair the document: {error.strerror or error}")
    if form == "json":
        paths = {"set_aside": done.set_aside, "genesis_set_aside": done.genesis_set_aside}
        named = {key: str(aside) if aside else None for key, aside in paths.items()}
        print_json({**asdict(done), "problems": list(done.problems), **named})
    else:
        _print_repair(done, path)
    # Without its genesis the box is whole again only once somebody has given it one.
    sys.exit(exits.OK if done.fleet is not None else exits.DEGRADED)


def _print_repair(done: Repair, path: Path) -> None:
    for problem in done.problems:
        click.echo(f"found: {printable(problem)}")
    if done.damaged:
        click.echo(f"{done.damaged} damaged records were removed; they come again from other boxes")
    if done.set_aside:
        click.echo(f"the bad database is now {done.set_aside}; remove it when the fleet is complete again")
        click.echo("what it held comes again from other boxes when the agent runs, or with: shoal import FILE")
    if done.fleet is not None:
        click.echo(f"the document of {printable(done.fleet)}: {done.ops} ops, {done.members} members, sound")
        return
    if done.genesis_set_aside:
        click.echo(f"the bad genesis is now {done.genesis_set_aside}; remove it when this box is in its fleet again")
    what = (
        f"holds {done.ops} ops of the fleet {done.fleet_id[:16]}…, and" if done.fleet_id else "holds no ops either, and"
    )
    click.echo(f"this box does not know what fleet it belongs to: it {what} has no genesis")
    click.echo("  -> on another box of that fleet: shoal export --file FILE")
    click.echo(f"     then here: shoal import --join-fleet --config {path} FILE")
    click.echo("     with no way to carry a file, a new token of that fleet (shoal invite) brings it too: shoal join")


def _ask(client: AgentClient) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the agent says of itself, and its warnings; raises ClientError."""
    facts, ready = client.get("/v1/fleet/self"), client.get("/readyz")
    keys = ("code", "severity", "title", "text", "remedy")
    with client.understood():
        found = [{key: str(warning[key]) for key in keys} for warning in facts["warnings"]]
        if not ready["ready"]:
            reasons = "; ".join(str(reason) for reason in ready["reasons"])
            found.append(_warning("not_ready", "warning", "the agent is not ready", reasons, "wait, then look again"))
    return facts, found


def _remedy(code: str, path: Path | None) -> str:
    return {
        "agent_unreachable": f"start it with: shoal run --config {path or 'FILE'}, or name another one with --url",
        "unauthorized": "give its API key with --api-key-file or SHOAL_API_KEY",
    }.get(code, "check --url and SHOAL_URL")


def _print(facts: dict[str, Any], path: Path | None, warnings: list[dict[str, Any]]) -> None:
    if facts:
        who = f"{facts.get('name')} ({facts.get('peer_id')}), version {facts.get('version')}, {facts.get('state')}"
        click.echo(f"agent    {printable(who)}")
    if path is not None:
        click.echo(f"config   {path}")
    for severity, (heading, colour) in _HEADINGS.items():
        found = [warning for warning in warnings if warning["severity"] == severity]
        if found:
            click.echo(f"\n{styled(heading, fg=colour, bold=True)}")
        for warning in found:
            click.echo(f"  {printable(warning['title'])}  [{printable(warning['code'])}]")
            click.echo(textwrap.indent(printable(warning["text"], keep_lines=True), "    "))
            click.echo(f"    -> {printable(warning['remedy'])}")
    if not warnings:
        click.echo("nothing is wrong")


def _check_files(path: Path) -> tuple[Config | None, list[dict[str, Any]]]:
    """The configuration, if it can be used, and what can be wrong before an agent even starts."""
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError
    from fleet.identity import keys

    try:
        config = load(path)
    except ConfigError as error:
        remedy = "correct what is named; docs/configuration.md has every key"
        return None, [_warning("config", "error", "the configuration cannot be used", error.message, remedy)]
    found = []
    try:
        keys.load(config.seed_file or config.state_dir / "identity.seed", create=False)
    except IdentityError as error:
        _, run, command = error.message.rpartition("run: ")
        remedy = command if run else "do what it says; `shoal init` makes an identity where there is none"
        found.append(_warning("identity", "error", "the identity cannot be used", error.message, remedy))
    for model in config.models:
        if not model.path.is_file():
            text = f"{model.path} is not a file"
            found.append(_warning("model_missing", "error", "a model file is missing", text, "correct models[].path"))
    return config, found


def _own_url(config: Config) -> str:
    """Where the agent of a configuration is asked from its own machine."""
    host, _, port = config.http.listen.rpartition(":")
    here = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http://{here}:{port}"


def _check_document(config: Config, path: Path) -> list[dict[str, Any]]:
    """Whether the fleet document of a box that does not run can be read."""
    from agent.document_disk import FOLDER, read_document
    from fleet.document.store import OpStore
    from fleet.errors import FleetError

    mend = f"with the agent stopped: shoal doctor --repair --config {path}"
    try:
        genesis, _ = read_document(config.state_dir)
    except FleetError as error:
        remedy = f"{mend}; then do what it says"
        return [_warning("document_unreadable", "error", "the fleet document cannot be read", error.message, remedy)]
    if genesis is None and OpStore(config.state_dir / FOLDER).path.exists():
        text = f"{config.state_dir / FOLDER} has ops and no genesis.cbor, so this box does not know its fleet"
        remedy = f"{mend}, which says how to go on"
        return [_warning("genesis_missing", "error", "the fleet's genesis is missing", text, remedy)]
    return []


def _check_ports(config: Config) -> list[dict[str, Any]]:
    host, _, port = config.http.listen.rpartition(":")
    wanted = [("http.listen", host.strip("[]").replace("localhost", "127.0.0.1"), int(port))]
    for addr in config.net.listen:
        _, _, ip, _, tcp_port = addr.split("/")
        wanted.append(("net.listen", ip, int(tcp_port)))
    found = []
    for key, ip, number in wanted:
        reason = _bind_problem(ip, number)
        if reason is not None:
            text = f"{key}: {ip} port {number}: {reason}"
            remedy = f"end what uses it (ss -ltnp 'sport = :{number}' shows it), or change {key}"
            found.append(_warning("port", "error", "an address cannot be listened on", text, remedy))
    return found


def _bind_problem(ip: str, port: int) -> str | None:
    family = socket.AF_INET6 if ipaddress.ip_address(ip).version == 6 else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As the agent does: connections that are closing do not keep a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ip, port))
    except OSError as error:
        return "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


def _warning(code: str, severity: str, title: str, text: str, remedy: str) -> dict[str, Any]:
    return {"code": code, "severity": severity, "title": title, "text": text, "remedy": remedy}
