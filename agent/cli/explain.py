"""`shoal explain JOB`: why a job ran where it ran, with every box that was looked at and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import click

from agent.cli.command import Place, box_command
from agent.cli.output import print_json, printable, table

_HEADER: Final = ("#", "BOX", "RATE", "JOBS", "WAIT", "HEALTH", "RECORD", "RTT", "SCORE", "VERDICT")
#: What a narrow terminal does without, first to last.
_SPARE: Final = ("RECORD", "RTT", "SCORE", "HEALTH", "WAIT", "JOBS")


@click.command()
@click.argument("job")
@box_command
def explain(place: Place, form: str, job: str) -> None:
    """Say why a JOB of this box ran where it ran. Its id is in the header X-Shoal-Job and in the logs.

    The box that was asked remembers its last jobs until it is restarted.
    """
    client = place.client()
    route = client.get(f"/v1/fleet/jobs/{quote(job, safe='')}/route")
    with client.understood():
        text = _text(route)
    if form == "json":
        print_json(route)
    else:
        click.echo(text)


def _text(route: Mapping[str, Any]) -> str:
    when = datetime.fromtimestamp(float(route["decided_at"])).astimezone().isoformat(timespec="seconds")
    decisions = list(route["decisions"])
    names = {str(box["peer_id"]): str(box["name"]) for decision in decisions for box in decision["candidates"]}
    served = route["served_by"]
    end = f"served by {names.get(str(served), str(served))}" if served else "not served, or not yet"
    about = f"{route['job']}: {route['model']}, offload {route['policy']}, {when}, {end}"
    lines = [printable(about)]
    for number, decision in enumerate(decisions):
        lines.append("" if number == 0 else "\nafter that box failed:")
        boxes = sorted(decision["candidates"], key=lambda box: (box["rank"] is None, box["rank"] or 0))
        lines.append(table(_HEADER, [_row(box) for box in boxes], rigid=("#", "RATE"), spare=_SPARE))
        if decision["refusal"]:
            lines.append(f"refused: {printable(str(decision['refusal']))}")
    return "\n".join(lines)


def _row(box: Mapping[str, Any]) -> tuple[str, ...]:
    rate, rtt = box["decode_rate"], box.get("rtt_ms")
    known = "score" in box
    verdict = str(box["reason"]) + ("; had this conversation" if box.get("remembers") else "")
    return (
        "-" if box["rank"] is None else str(box["rank"]),
        str(box["name"]),
        "-" if rate is None else f"{rate:.3g} tok/s",
        f"{box['jobs']}/{box['slots']}" if known else "-",
        ("none" if box["starts_at_once"] else f"{box['wait_s']:.1f} s") if known else "-",
        f"{box['health']:.0%}" if known else "-",
        f"{box['record']:.0%}" if known else "-",
        "-" if rtt is None else f"{rtt:.1f} ms" + (" relayed" if box["relayed"] else ""),
        f"{box['score']:.2f}" if known else "-",
        verdict,
    )
