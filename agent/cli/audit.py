"""`shoal audit`: what became of every job, as lines that are printed as they come."""

from __future__ import annotations

import csv
import functools
import io
import json
import sys
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, box_command
from agent.cli.output import printable, rows_output_option, styled

#: The columns of CSV: every field of a line, in the order of docs/audit.md.
COLUMNS: Final = (
    "at", "job", "role", "outcome", "error", "phase", "kind", "asked", "model", "hash", "peer", "peer_name", "route",
    "tried", "repeats", "prompt_tokens", "tokens", "queue_ms", "first_token_ms", "total_ms", "traceparent", "parent",
    "count", "since",
)  # fmt: skip
#: What begins a formula where a spreadsheet opens the file.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
#: Seconds; the agent gives a sign of life every 15 to whoever follows.
_SILENCE: Final = 60.0
_COLOURS: Final = {"error": "red", "lost": "red", "refused": "yellow", "cancelled": "yellow"}


@click.command()
@click.option("--job", help="of one job")
@click.option("--peer", help="with one other box: its PeerID or name")
@click.option("--model", help="of one model: its name, as asked for or as it ran, or its hash")
@click.option("--outcome", help="ok, error, refused, cancelled, lost, or an error's code")
@click.option(
    "--since", metavar="2h|2026-11-20", help="how long ago (s, m, h, d, w), or from which UTC date or time on"
)
@click.option("-f", "--follow", is_flag=True, help="go on with those to come, until Ctrl-C")
@functools.partial(box_command, output=rows_output_option)
def audit(place: Place, form: str, follow: bool, **asked: str | None) -> None:
    """List what became of the jobs that this box ran, borrowed or lent, oldest first; never what was said in them."""
    query = {name: value for name, value in asked.items() if value} | ({"follow": "1"} if follow else {})
    client = place.client()
    if form == "csv":
        _print_row(COLUMNS)
    found = False
    try:
        with client.lines(f"/v1/audit?{urlencode(query)}", limit=_SILENCE) as lines:
            for line in lines:
                if not line:
                    continue  # a sign of life
                with client.understood():
                    facts = json.loads(line)
                    _raise_broken(facts)
                    _print(facts, line, form)
                found = True
                if follow:
                    sys.stdout.flush()
    except KeyboardInterrupt:
        if not follow:
            raise
    if not found and form == "text" and not follow:
        click.echo("no outcome matches" if query else "no job has ended here yet")


def _raise_broken(facts: Mapping[str, Any]) -> None:
    error = facts.get("error")
    if isinstance(error, dict):
        raise ClientError(str(error["code"]), str(error["message"]))


def _print(facts: Mapping[str, Any], line: bytes, form: str) -> None:
    if form == "json":
        click.echo(line.decode("utf-8", "replace"))
    elif form == "csv":
        _print_row([_cell(facts.get(name)) for name in COLUMNS])
    else:
        click.echo(text_of(facts))


def _print_row(cells: Any) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    click.echo(written.getvalue(), nl=False)


def _cell(value: object) -> str:
    if isinstance(value, list):
        value = "; ".join(f"{peer}={code}" for peer, code in value)
    text = "" if value is None else str(value)
    return "'" + text if isinstance(value, str) and text.startswith(_FORMULA) else text


def text_of(facts: Mapping[str, Any]) -> str:
    """One outcome as a line for people."""
    outcome = str(facts["outcome"])
    count = int(facts.get("count", 1))
    what = f"{outcome} {facts['error']}" if facts.get("error") else outcome
    if facts.get("phase"):
        what += f" ({facts['phase']})"
    if count > 1:
        what += f" x{count}"
    peer = str(facts.get("peer_name") or facts.get("peer") or "")
    who = {"asker": f"at {peer}" if peer else "here", "lender": f"for {peer}"}.get(str(facts["role"]), "")
    if facts["role"] == "asker" and facts.get("route") == "none":
        who = "nowhere"
    parts = [
        str(facts["at"])[:19].replace("T", " "),
        styled(printable(what), fg=_COLOURS[outcome]) if outcome in _COLOURS else printable(what),
        printable(str(facts.get("model") or facts.get("asked") or "-")),
        printable(who),
        _times(facts),
        printable(str(facts.get("job", ""))),
    ]
    return "  ".join(filter(None, parts))


def _times(facts: Mapping[str, Any]) -> str:
    first = facts.get("first_token_ms")
    told = f"{facts['prompt_tokens']}+{facts['tokens']} tok, {float(facts['total_ms']) / 1000:.2f} s"
    return told if first is None else f"{told}, first after {float(first) / 1000:.2f} s"
