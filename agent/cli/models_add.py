"""`shoal models add`: a model comes into the fleet, and an admin vouches for what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json

if TYPE_CHECKING:
    from agent.cli.admin_key import AdminKey
    from agent.cli.document import Document, DocumentAccess

_NOT_A_NAME: Final = re.compile(r"[^a-z0-9._-]+")
_LONGEST: Final = 63


@click.command()
@click.argument("source")
@click.option("--name", help="what the fleet calls it  [default: the file's name without .gguf]")
@click.option(
    "--algorithm",
    type=click.Choice(["sha256", "blake3"]),
    default="sha256",
    show_default=True,
    help="hash of its blocks; blake3 for boards without SHA instructions",
)
@click.option("--print", "only_print", is_flag=True, help="print the manifest for an admin to apply, and sign nothing")
@admin_key_option
@yes_option
@box_command
def add(
    place: Place, form: str, source: str, name: str | None, algorithm: str, only_print: bool, admin_key: Path, yes: bool
) -> None:
    """Take a model into this box's store, and into the fleet: SOURCE is a GGUF file of the agent's machine, an https
    URL, or hf:ORG/REPO/FILE.

    The agent does the work: Ctrl-C leaves it running, and the same command again watches it, or goes on with it.
    """
    from agent.cli.progress import watch

    absolute = _absolute(source)
    name = _name(name or absolute.partition("?")[0].rpartition("/")[2])
    key, access, document = None, place.access(), None
    if not only_print:
        # Before gigabytes are moved.
        document, key = access.read(facts=True), load_admin_key(admin_key)
        key.check_standing(document)
    client = place.client()
    started = client.post("/v1/fleet/models/add", {"source": absolute, "algorithm": algorithm})
    with client.understood():
        transfer = str(started["transfer"]["id"])
    done = watch(client, transfer, form)
    with client.understood():
        spec = _spec(done["result"], absolute)
    if key is None or document is None:
        _print_manifest(form, name, spec)
        return
    ops = _sign(access, key, name, spec, form, yes)
    if form == "json":
        print_json({"model": name, **spec, "ops": ops})
    else:
        click.echo(f"{name} is known to the fleet: {spec['size_bytes'] / 1e6:,.1f} MB, {spec['hash']}")
        click.echo(f"it is on this box; have it on others with: shoal models place {name} --on 'site=berlin'")


def _absolute(source: str) -> str:
    if source.startswith("hf:") or "://" in source:
        return source
    return str(Path(source).expanduser().absolute())


def _name(text: str) -> str:
    """A name that a manifest may have; raises ClientError."""
    from fleet.models.reference import canonical_name

    name = _NOT_A_NAME.sub("-", canonical_name(text)).lstrip("._-")[:_LONGEST]
    if not name:
        raise ClientError("usage", f"{text!r} makes no name for a model; give it one with --name")
    return name


def _spec(result: dict[str, Any], source: str) -> dict[str, Any]:
    """The model's manifest, as the agent has found it."""
    spec: dict[str, Any] = {
        "hash": str(result["hash"]),
        "size_bytes": int(result["size_bytes"]),
        "root": str(result["root"]),
        "algorithm": str(result["algorithm"]),
    }
    if not source.startswith("/"):
        spec["source"] = source.partition("?")[0].partition("#")[0]  # a query may hold a secret
    return spec | {key: str(result["words"][key]) for key in ("size", "quant") if key in result["words"]}


def _sign(access: DocumentAccess, key: AdminKey, name: str, spec: dict[str, Any], form: str, yes: bool) -> list[str]:
    """Write the manifest; asks first where the fleet knows another model by this name."""
    from agent.cli.effect import superseding

    document: Document = access.read(facts=True)
    path = f"model/{name}"
    held = document.view.settings.get(path)
    before = held.value if held is not None and isinstance(held.value, dict) else {}
    if before.get("hash") not in (None, spec["hash"]):
        agree(form, yes, f"{name} is {before['hash']} so far; boxes that hold that will be given {spec['hash']}")
    merged = {**{k: v for k, v in before.items() if k not in ("root", "algorithm", "size_bytes")}, **spec}
    if merged == before and held is not None and not held.rivals:
        return []
    ops = key.write(access, document, superseding(document.view, "cfg", path, merged))
    return [op.id.hex() for op in ops]


def _print_manifest(form: str, name: str, spec: dict[str, Any]) -> None:
    from agent.manifests.text import yaml_of

    whole = {"kind": "Model", "name": name, "spec": spec}
    if form == "json":
        print_json(whole)
    else:
        click.echo(yaml_of(whole, sort_keys=False), nl=False)
