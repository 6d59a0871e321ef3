"""`shoal leaderboard`: who did how much for the other boxes of the fleet."""

from __future__ import annotations

from typing import Any, Final

import click

from agent.cli.command import Place, box_command
from agent.cli.output import print_json, table

_HEADER: Final = ("#", "NAME", "TIER", "POINTS", "JOBS", "TOKENS", "FAILED", "SAY SO", "RECORD", "WEIGHT", "END")


@click.command()
@box_command
def leaderboard(place: Place, form: str) -> None:
    """List the boxes by what they did for others, as those others say: nobody raises his own score.

    A point is a thousand tokens that went well; the word of one box is worth 400 points at most. Tiers: bronze 1,
    silver 100, gold 500, platinum 1500, diamond 4000, master 10000.
    """
    client = place.client()
    found = client.get("/v1/fleet/leaderboard")
    with client.understood():
        rows = [_row(box) for box in found["boxes"]]
    if form == "json":
        print_json({"boxes": found["boxes"]})
    elif rows:
        click.echo(table(_HEADER, rows, rigid=("#", "TIER", "POINTS", "END"), spare=("WEIGHT", "RECORD", "FAILED")))
    else:
        click.echo("no box has done anything for another one yet, as far as this one knows")


def _row(box: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{box['rank']:d}",
        str(box["name"]) + (" *" if box["self"] else ""),
        str(box["tier"] or "-"),
        f"{box['points']:.1f}",
        f"{box['jobs']:d}",
        f"{box['tokens']:d}",
        f"{box['failures']:d}",
        f"{box['consumers']:d}",
        f"{box['record']:.2f}",
        f"{box['weight']:.2f}",
        "…" + str(box["peer_id"])[-8:],
    )
