"""`shoal models`: what can be asked for here, what runs it and what that takes; unload a model, or try one again.

What the fleet knows and stores is in `models_add`, `models_store` and `models_place`.
"""

from __future__ import annotations

from typing import Any, Final

import click

from agent.cli.command import Place, box_command
from agent.cli.models_add import add
from agent.cli.models_place import place as place_model
from agent.cli.models_store import gc, ls, pull, rm, show, verify
from agent.cli.output import print_json, table

_HEADER: Final = ("MODEL", "CONTEXT", "MEMORY", "HASH", "HELD BY")
_MIB: Final = 1 << 20


@click.group(invoke_without_command=True)
@box_command
@click.pass_context
def models(ctx: click.Context, place: Place, form: str) -> None:
    """List the models that can be asked for here, which boxes hold them, and what runs them.

    MEMORY is of a model that is loaded on this box: what its process takes, and what it was planned to take.
    """
    if ctx.invoked_subcommand is not None:
        return
    client = place.client()
    found = client.get("/v1/models")
    with client.understood():
        listed = [{"name": str(model["id"]), **model["shoal"]} for model in found["data"]]
        rows = [_row(model) for model in listed]
    if form == "json":
        print_json({"models": listed})
    elif rows:
        click.echo(table(_HEADER, rows, rigid=("CONTEXT", "MEMORY"), spare=("HASH",)))
    else:
        click.echo("no model is held here or by a connected box; see `shoal peers` and `shoal doctor`")


@models.command()
@click.argument("name")
@box_command
def unload(place: Place, form: str, name: str) -> None:
    """Free the memory of a model that this box runs, until it is asked for again."""
    done = _told(place, "unload", name)
    if form == "json":
        print_json(done)
    else:
        click.echo(f"{name} is unloaded until it is asked for" if done["unloaded"] else f"{name} was not loaded")


@models.command()
@click.argument("name")
@box_command
def retry(place: Place, form: str, name: str) -> None:
    """Let a model of this box that failed be loaded again, whatever it failed for."""
    done = _told(place, "retry", name)
    if form == "json":
        print_json(done)
    else:
        click.echo(f"{name} is tried again; see `shoal models`" if done["retried"] else f"{name} has not failed")


for _command in (add, ls, show, place_model, pull, verify, rm, gc):
    models.add_command(_command)


def _told(place: Place, what: str, name: str) -> dict[str, Any]:
    client = place.client()
    done = client.post(f"/v1/fleet/models/{what}", {"model": name})
    with client.understood():
        return {"model": str(done["model"]), **{key: bool(done[key]) for key in ("unloaded", "retried") if key in done}}


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    short_hash = str(model["hash"]).removeprefix("sha256:")[:12]
    holders = ", ".join(_holder(holder) for holder in model["holders"])
    return model["name"], f"{model['context_tokens']:d}", _memory(model["holders"]), short_hash, holders or "-"


def _memory(holders: list[dict[str, Any]]) -> str:
    for holder in holders:
        if planned := holder.get("memory_bytes"):
            return f"{holder.get('rss_bytes', 0) / _MIB:.0f} of {planned / _MIB:.0f} MiB"
    return "-"


def _holder(holder: dict[str, Any]) -> str:
    rate = f", {holder['decode_rate']:.0f} tok/s" if holder.get("decode_rate") else ""
    here = " (this box)" if holder["local"] else ""
    by = f", {holder['engine']} at {holder['url']}" if holder.get("engine") else ""
    return f"{holder['name']}{here} [{holder['state']}{rate}{by}]"
