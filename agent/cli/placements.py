"""`shoal placements`: where models are to be, whether they are, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, box_command
from agent.cli.output import print_json, printable, table

_HEADER: Final = ("PLACEMENT", "MODEL", "ON", "MIN", "MAX", "COPIES", "STATE")
_BOXES: Final = ("BOX", "ROLE", "HAS", "WHY")


@click.group(invoke_without_command=True)
@box_command
@click.pass_context
def placements(ctx: click.Context, place: Place, form: str) -> None:
    """List the placements of the fleet, and how each stands."""
    if ctx.invoked_subcommand is not None:
        return
    client = place.client()
    found = client.get("/v1/fleet/placements")
    if form == "json":
        print_json(found)
        return
    with client.understood():
        rows = [_row(one) for one in found["placements"]]
    if rows:
        click.echo(table(_HEADER, rows, rigid=("MIN", "MAX", "COPIES"), spare=("ON",)))
    else:
        click.echo("nothing is placed; see: shoal models place --help")


@placements.command()
@click.argument("name", required=False)
@box_command
def explain(place: Place, form: str, name: str | None) -> None:
    """Say why a placement falls on each box or not, and what this box does about it. NAME is its, or a model's."""
    client = place.client()
    found = client.get("/v1/fleet/placements")
    with client.understood():
        chosen = [one for one in found["placements"] if name in (None, one["placement"], one["model"], one["hash"])]
        if name is not None and not chosen:
            known = ", ".join(str(one["placement"]) for one in found["placements"]) or "none"
            raise ClientError("usage", f"there is no placement {name!r}; there are: {known}")
        blobs = {one["hash"] for one in chosen}
        here = [one for one in found["here"] if one["hash"] in blobs or name is None]
        text = "\n\n".join([*(_explained(one) for one in chosen), *(_here(one) for one in here)])
    if form == "json":
        print_json({"placements": chosen, "here": here, "closed": found.get("closed", "")})
    else:
        click.echo(text or "nothing is placed; see: shoal models place --help")


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    bounds = (str(one[key]) if one[key] is not None else "-" for key in ("min", "max"))
    return (
        str(one["placement"]),
        str(one["model"]),
        str(one["on"]) or "every box",
        *bounds,
        str(one["copies"]),
        str(one["summary"]),
    )


def _explained(one: Mapping[str, Any]) -> str:
    bounds = [f"{key} {one[key]}" for key in ("min", "max") if one[key] is not None]
    about = f"{one['placement']}: {one['model']} on {one['on'] or 'every box'}"
    lines = [printable(", ".join([about, *bounds])), printable(str(one["summary"]))]
    rows = [
        (
            f"{box['name'] or box['peer_id']}{' (this box)' if box['self'] else ''}",
            _role(box),
            f"{float(box['complete']):.0%}",
            "it is gone" if box["gone"] and not box["why"] else str(box["why"]),
        )
        for box in one["boxes"]
    ]
    return "\n".join([*lines, table(_BOXES, rows, rigid=("ROLE", "HAS"))]) if rows else "\n".join(lines)


def _role(box: Mapping[str, Any]) -> str:
    if box["role"] == "home":
        return "holds" if float(box["complete"]) >= 1 else "to hold"
    return {"stand-in": "stands in", "spare": "spare", "not": "no"}[box["role"]]


def _here(want: Mapping[str, Any]) -> str:
    asked = (
        "it was pulled or added here" if want["reason"] == "pulled" else f"placed by {', '.join(want['placements'])}"
    )
    state = f"{want['state']}{': ' + want['why'] if want['why'] else ''}"
    return printable(f"this box: {want['model']} ({asked}) is {state}")
