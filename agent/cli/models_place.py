"""`shoal models place`: say which boxes are to hold a model, and see at once which those are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable

if TYPE_CHECKING:
    from agent.cli.document import Document
    from agent.reconcile.homes import Falls
    from fleet.document.op import Op
    from fleet.document.view import View

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@click.command()
@click.argument("model")
@click.option("--on", "where", default="", help="which boxes, such as 'site=berlin,ram>=2GB'  [default: every box]")
@click.option("--min", "least", type=click.IntRange(1, 10_000), help="copies to keep when a box that has one is gone")
@click.option(
    "--max", "most", type=click.IntRange(1, 10_000), help="boxes that get one at most  [default: --min, or all]"
)
@click.option("--as", "name", help="name of the placement  [default: the model's]")
@admin_key_option
@yes_option
@box_command
def place(
    place: Place,
    form: str,
    model: str,
    where: str,
    least: int | None,
    most: int | None,
    name: str | None,
    admin_key: Path,
    yes: bool,
) -> None:
    """Have a MODEL of the fleet on the boxes that a selector means. Placing it again changes the placement.

    Terms are joined by commas and all have to hold: LABEL=VALUE, ram>=2GB, disk>=64GiB, cpus>=4, rate>=10 (tokens per
    second of the fastest model there), arch=aarch64, gpu=any or none or its name, name=BOX; each also with !=.
    """
    from agent.cli.effect import superseding, with_ops
    from agent.manifests.selector import parse_selector

    if least is not None and most is not None and least > most:
        raise ClientError("usage", f"--min {least} is more than --max {most}")
    terms = ",".join(map(str, parse_selector(where)))
    access = place.access()
    document = access.read(facts=True)
    known = _known(document, model)
    name = name or known
    if not _NAME.fullmatch(name):
        raise ClientError("usage", f"{name!r} is no name for a placement: lower-case letters, digits, '.', '_' or '-'")
    spec: dict[str, Any] = {
        "model": known,
        **({"selector": {"where": terms}} if terms else {}),
        **({"min": least} if least is not None else {}),
        **({"max": most} if most is not None else {}),
    }
    path = f"place/{name}"
    held = document.view.settings.get(path)
    admin = load_admin_key(admin_key)
    ops: list[Op] = []
    if held is None or held.value != spec or held.rivals:
        ops = admin.sign(document, superseding(document.view, "cfg", path, spec))
        before = held.value if held is not None else None
        if before is not None:
            agree(form, yes, f"{path} is {_words(before)} so far, and becomes {_words(spec)}", {"before": before})
        admin.hand_over(access, document, ops)
    fall = _fall(with_ops(document, ops), name)
    if form == "json":
        print_json({"placement": name, "spec": spec, "ops": [op.id.hex() for op in ops], **_facts(fall)})
        return
    click.echo(printable(_told(name, known, fall)))


def _known(document: Document, model: str) -> str:
    """The name by which the fleet knows a model; raises ClientError."""
    from agent.reconcile.desired import read_wishes

    wishes = read_wishes(document.view.settings)
    found = wishes.by_name(model)
    if found is None:
        known = ", ".join(sorted(one.name for one in wishes.models.values())) or "none"
        raise ClientError(
            "model_not_found",
            f"the fleet knows no model {model!r} by hash; it knows: {known}; add one with: shoal models add",
        )
    if found.manifest is None:
        raise ClientError("model_not_found", f"{found.name} cannot travel: {found.problem}")
    return found.name


def _fall(view: View, name: str) -> Falls:
    from agent.reconcile.situation import situation_of

    return next(fall for fall in situation_of(view, b"", ()).falls if fall.placement.name == name)


def _facts(fall: Falls) -> dict[str, Any]:
    from agent.reconcile.explain import placement_facts

    facts = placement_facts(fall, b"")
    return {key: facts[key] for key in ("boxes", "copies", "short", "problem", "summary")}


def _told(name: str, model: str, fall: Falls) -> str:
    from agent.reconcile.explain import summary

    chosen = [one.name or "a box without a name" for one in fall.verdicts if one.role in ("home", "stand-in")]
    if not chosen:
        return f"{name}: {model} falls on no box now; see: shoal placements explain {name}"
    return f"{name}: {model} is to be on {', '.join(chosen)}; {summary(fall)}"


def _words(spec: object) -> str:
    from fleet.document.plain_json import text_of

    return text_of(spec)
