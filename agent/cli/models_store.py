"""`shoal models ls`, `show`, `verify`, `pull`, `rm`, `gc`: the fleet's models, and those in this box's store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import click

from agent.cli.client import AgentClient, ClientError
from agent.cli.command import Place, box_command, yes_option
from agent.cli.output import print_json, printable, table

_HEADER: Final = ("MODEL", "SIZE", "COPIES", "HERE", "PLACED BY", "HASH")
_RIGID: Final = ("SIZE", "COPIES", "HERE")
#: Seconds that an agent may take to look at an order, and to delete files.
_ORDER_LIMIT: Final = 60.0


@click.command()
@box_command
def ls(place: Place, form: str) -> None:
    """List the models that the fleet knows: how many boxes hold each, and what this one has."""
    client = place.client()
    found = client.get("/v1/fleet/models")
    if form == "json":
        print_json(found)
        return
    with client.understood():
        rows = [_row(model) for model in found["models"]]
        unlisted = [(str(one["hash"]), int(one["size_bytes"])) for one in found["unlisted"]]
        free = int(found["disk"]["free_bytes"])
    if rows:
        click.echo(table(_HEADER, rows, rigid=_RIGID, spare=("HASH", "PLACED BY")))
    else:
        click.echo("the fleet knows no model by hash; add one with: shoal models add FILE --name NAME")
    for blob, size in unlisted:
        click.echo(f"{blob} ({size_of(size)}) is in the store and unknown to the fleet; see: shoal models gc")
    click.echo(f"the disk takes {size_of(free)} more")


@click.command()
@click.argument("name")
@box_command
def show(place: Place, form: str, name: str) -> None:
    """Show a model: what vouches for it, who holds it, what wants it, and what this box has of it."""
    client = place.client()
    model = find(client, name)
    if form == "json":
        print_json(model)
        return
    with client.understood():
        text = _shown(model)
    click.echo(text)


@click.command()
@click.argument("name", required=False)
@box_command
def verify(place: Place, form: str, name: str | None) -> None:
    """Hash a model of this box's store again, block by block; all of them without a NAME.

    What is damaged is no longer served, and fetched again where it is wanted. Exit code 1 where something is.
    """
    from agent.cli.progress import watch

    client = place.client()
    if name is None:
        listed = client.get("/v1/fleet/models")
        with client.understood():
            names = [str(model["name"]) for model in listed["models"] if model["here"]["stored"]]
    else:
        names = [name]
    results = []
    for one in names:
        started = client.post("/v1/fleet/models/verify", {"model": one}, limit=_ORDER_LIMIT)
        with client.understood():
            done = watch(client, str(started["transfer"]["id"]), form)
            results.append({"model": one, "bad_blocks": [int(block) for block in done["result"]["bad_blocks"]]})
    bad = [result["model"] for result in results if result["bad_blocks"]]
    if form == "json":
        print_json({"verified": results})
    for result in results if form != "json" else ():
        count = len(result["bad_blocks"])
        what = f"{count} damaged block{'' if count == 1 else 's'}; it is no longer served" if count else "sound"
        click.echo(f"{result['model']}: {what}")
    if not results and form != "json":
        click.echo("this box's store holds no whole model")
    if bad:
        raise SystemExit(1)


@click.command()
@click.argument("name")
@click.option("--detach", is_flag=True, help="give the order and do not wait")
@box_command
def pull(place: Place, form: str, name: str, detach: bool) -> None:
    """Have a model on this box, whatever placements say, and keep it: fetched from the boxes that hold it.

    The agent does the work: Ctrl-C leaves it running, and the same command again watches it.
    """
    client = place.client()
    stands = client.post("/v1/fleet/models/pull", {"model": name}, limit=_ORDER_LIMIT)
    with client.understood():
        shown, blob, state, why = (str(stands[key]) for key in ("model", "hash", "state", "why"))
    if detach or state == "held":
        if form == "json":
            print_json(stands)
        elif state == "held":
            click.echo(f"{shown} is on this box")
        else:
            click.echo(f"{shown}: {state}{f' ({why})' if why else ''}; see: shoal transfers --watch")
        return
    done = _follow(client, shown, blob, form)
    if form == "json":
        print_json(done)
    else:
        click.echo(_summary(shown, done))


@click.command()
@click.argument("name")
@yes_option
@box_command
def rm(place: Place, form: str, name: str, yes: bool) -> None:
    """Delete this box's copy of a model. With --yes also where it is the last one of the fleet.

    The fleet goes on knowing the model; to have it forgotten, delete model/NAME with `shoal delete`.
    """
    done = place.client().post("/v1/fleet/models/remove", {"model": name, "last": yes}, limit=_ORDER_LIMIT)
    if form == "json":
        print_json(done)
    else:
        click.echo(f"{printable(str(done.get('model')))} is deleted from this box")


@click.command()
@click.option("--dry-run", is_flag=True, help="list what would be deleted, and delete nothing")
@yes_option
@box_command
def gc(place: Place, form: str, dry_run: bool, yes: bool) -> None:
    """Delete what nothing wants on this box: no placement, and nobody who added or pulled it here.

    Copies that no other box that is there holds are kept, unless --yes says that they may be lost.
    """
    client = place.client()
    done = client.post("/v1/fleet/models/gc", {"dry_run": dry_run, "last": yes}, limit=_ORDER_LIMIT)
    if form == "json":
        print_json(done)
        return
    with client.understood():
        kept = {str(one["hash"]) for one in done["kept"]}
        listed = done["found"] if dry_run else done["removed"]
        did = "would delete" if dry_run else "deleted"
        lines = [
            f"{did} {one['model']} ({size_of(int(one['size_bytes']))}): {one['why']}"
            for one in listed
            if str(one["hash"]) not in kept
        ]
        lines += [
            f"kept {one['model']} ({size_of(int(one['size_bytes']))}): {one['why']}, but no other box that is there has"
            " it; with --yes it is lost"
            for one in done["kept"]
        ]
    click.echo(printable("\n".join(lines), keep_lines=True) if lines else "there is nothing to delete")


def find(client: AgentClient, name: str) -> dict[str, Any]:
    """A model of the fleet by name or hash; raises ClientError that names those that there are."""
    from fleet.models.reference import matches

    listed = client.get("/v1/fleet/models")
    with client.understood():
        for model in listed["models"]:
            if any(matches(name, model_hash=str(model["hash"]), name=one) for one in _names(model)):
                found: dict[str, Any] = model
                return found
        known = ", ".join(str(model["name"]) for model in listed["models"]) or "none"
    raise ClientError("model_not_found", f"the fleet knows no model {name!r}; it knows: {known}")


def _names(model: Mapping[str, Any]) -> list[str]:
    return [str(one) for one in model.get("names") or (model["name"],)]


def size_of(amount: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _follow(client: AgentClient, name: str, blob: str, form: str) -> dict[str, Any]:
    """Show the fetch of a model until it is over, and say what it waits for while there is none."""
    from agent.cli.progress import LOOK, Screen, line, transfers_of

    screen = Screen()
    while True:
        fetches = [one for one in transfers_of(client) if one["kind"] == "fetch" and one["hash"] == blob]
        last = fetches[-1] if fetches else None
        if last is not None and last["state"] == "done":
            if form != "json":
                screen.draw([line(last, screen.width)], said="done")
            return last
        if last is not None and last["state"] == "running":
            said = f"{last['progress'].get('phase')} {last['progress'].get('reason')}"
            shown = line(last, screen.width)
        else:
            said = shown = _waits_for(client, name, blob)
            if not shown:
                return {"model": name, "hash": blob, "state": "done", "progress": {}}
        if form != "json":
            screen.draw([shown[: screen.width]], said=said)
        time.sleep(LOOK)


def _waits_for(client: AgentClient, name: str, blob: str) -> str:
    """Why a model that is wanted here is not fetched now; empty where it is here."""
    answer = client.get("/v1/fleet/placements")
    with client.understood():
        want = next((one for one in answer["here"] if one["hash"] == blob), None)
        if want is None:
            raise ClientError("declined", f"{name} is not wanted on this box any more")
        return "" if want["state"] == "held" else printable(f"{name}: {want['why'] or want['state']}")


def _summary(name: str, done: Mapping[str, Any]) -> str:
    at = done["progress"]
    if "moved" not in at:
        return f"{name} is on this box"
    sources = [str(source["name"]) for source in at["sources"] if source["bytes"]]
    told = f" from {', '.join(sources)}" if sources else ""
    return printable(f"{name} is on this box: {size_of(int(at['moved']))} came{told}")


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    whole = [one for one in model["holders"] if one["complete"] >= 1 and not one["gone"]]
    here = model["here"]
    if here["complete"] >= 1:
        state = "yes" if here["served"] else "stored"
    else:
        state = f"{here['complete']:.0%}" if here["wanted"] or here["complete"] else "-"
    placed = ", ".join(map(str, model["placements"])) or ("pulled" if here["pinned"] else "-")
    size = size_of(int(model["size_bytes"])) if model["size_bytes"] else "?"
    short = str(model["hash"]).removeprefix("sha256:")[:12]
    return str(model["name"]), size, str(len(whole)), state, placed, short


def _shown(model: Mapping[str, Any]) -> str:
    here = model["here"]
    lines = [
        f"name       {model['name']}",
        *(f"also       {one}" for one in _names(model) if one != model["name"]),
        f"hash       {model['hash']}",
        f"size       {size_of(int(model['size_bytes']))} in {model['blocks']} blocks",
        f"tree       {model['algorithm']} {model['root']}",
        f"placed by  {', '.join(map(str, model['placements'])) or '-'}",
        f"here       {here['complete']:.0%}{', served' if here['served'] else ''}{', kept' if here['pinned'] else ''}"
        + (f": {here['why']}" if here["why"] else ""),
    ]
    if model["problem"]:
        lines.append(f"problem    {model['problem']}")
    for one in model["holders"]:
        gone = ", gone" if one["gone"] else ""
        this = " (this box)" if one["self"] else ""
        lines.append(f"held by    {one['name'] or one['peer_id']}{this} {one['complete']:.0%}{gone}")
    return "\n".join(printable(line) for line in lines)
