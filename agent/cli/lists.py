"""`shoal peers`: the boxes that a running agent knows."""

from __future__ import annotations

from typing import Any, Final

import click

from agent.cli.command import Place, box_command
from agent.cli.output import print_json, table

_PEERS: Final = ("NAME", "STATE", "RTT", "SEEN", "PEER ID", "MODELS, OR WHY NOT")


@click.command()
@box_command
def peers(place: Place, form: str) -> None:
    """List the boxes this one knows, and how they are."""
    client = place.client()
    found = client.get("/v1/fleet/peers")
    with client.understood():
        rows = [_peer_row(peer) for peer in found["peers"]]
    if form == "json":
        print_json({"peers": found["peers"]})
    elif rows:
        click.echo(table(_PEERS, rows, rigid=("STATE",), keep_end=("PEER ID",), spare=("RTT",)))
    else:
        click.echo("no other box is known; invite one with `shoal invite`, or see `shoal doctor`")


def _peer_row(peer: dict[str, Any]) -> tuple[str, ...]:
    rtt = f"{peer['rtt_ms']:.1f} ms" if peer.get("rtt_ms") is not None else "-"
    seen = f"{peer['last_seen_s']:.0f} s ago" if peer.get("last_seen_s") is not None else "never"
    about = ", ".join(_held(model) for model in peer["models"]) if peer["connected"] else peer.get("last_error")
    return str(peer["name"]), str(peer["state"]), rtt, seen, str(peer["peer_id"]), str(about or "-")


def _held(model: dict[str, Any]) -> str:
    return f"{model['name']} ({model['state']})" if model["state"] in ("loading", "failed") else str(model["name"])
