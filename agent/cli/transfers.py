"""`shoal transfers`: what moves or is checked on this box."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from agent.cli.command import Place, box_command
from agent.cli.models_store import size_of
from agent.cli.output import print_json, table

_HEADER: Final = ("ID", "WHAT", "MODEL", "STATE", "DONE", "RATE", "SOURCES", "NOTE")


@click.command()
@click.option("--watch", "live", is_flag=True, help="go on showing them until interrupted")
@box_command
def transfers(place: Place, form: str, live: bool) -> None:
    """List the models that this box fetches, takes in or checks, and the last that are over."""
    from agent.cli.progress import LOOK, Screen, line, transfers_of

    client = place.client()
    if not live:
        found = transfers_of(client)
        if form == "json":
            print_json({"transfers": found})
        elif found:
            with client.understood():
                rows = [_row(one) for one in found]
            click.echo(table(_HEADER, rows, rigid=("ID", "WHAT", "STATE", "DONE", "RATE"), spare=("SOURCES",)))
        else:
            click.echo("nothing was fetched, taken in or checked since the agent started")
        return
    screen, before = Screen(), ""
    while True:
        found = transfers_of(client)
        if form == "json":
            text = json.dumps(found)
            if text != before:
                before = text
                print_json({"transfers": found})
        else:
            shown = [line(one, screen.width) for one in found if one["state"] == "running"]
            said = " ".join(f"{one['id']} {one['state']} {one['progress'].get('phase')}" for one in found)
            screen.draw(shown or ["nothing moves now"], said=said)
        time.sleep(LOOK)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    at = one["progress"]
    size, done = int(at.get("size") or 0), int(at.get("bytes") or 0)
    running = one["state"] == "running"
    rate = f"{size_of(float(at.get('rate') or 0))}/s" if running else "-"
    sources = ", ".join(f"{source['name']} ({source['lane'] or source['state']})" for source in at.get("sources", ()))
    note = str(one["error"]) or (str(at.get("reason") or at.get("phase") or "") if running else str(one["source"]))
    return (
        str(one["id"]),
        str(one["kind"]),
        str(one["model"]),
        str(one["state"]),
        f"{done / size:.0%} of {size_of(size)}" if size else "-",
        rate,
        sources or "-",
        note or "-",
    )
