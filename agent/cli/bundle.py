"""`shoal export` and `shoal import`: the fleet document as a file, for boxes that never meet."""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli import exits
from agent.cli.client import MAX_TEXT, ClientError
from agent.cli.command import Place, box_command, genesis_of
from agent.cli.output import print_json, printable

if TYPE_CHECKING:
    from agent.cli.document import DocumentAccess, Outcome
    from fleet.document.bundle import Bundle
    from fleet.identity.genesis import Genesis

#: Refused ops that are named one by one for people; JSON has all.
_SHOWN: Final = 10
_STANDARD_INPUT: Final = "-"


@click.command("export")
@click.option("--file", "path", type=click.Path(path_type=Path), help="write it here and not to standard output")
@click.option(
    "--no-facts", is_flag=True, help="leave out what boxes say of themselves: only what admins and joins decide"
)
@box_command
def export(place: Place, form: str, path: Path | None, no_facts: bool) -> None:
    """Write the fleet document as a bundle of signed ops. Nothing in it is secret, and it replaces an older file."""
    from fleet.document.bundle import write_bundle

    document = place.access().read(facts=not no_facts)
    genesis = document.fleet
    lines = write_bundle(genesis, [op.raw for op in sorted(document.ops, key=lambda op: (op.hlc, op.id))])
    facts: dict[str, Any] = {"fleet": genesis.fleet_id.hex(), "name": genesis.name, "ops": len(document.ops)}
    if path is not None:
        _write(path, lines)
    if form == "json":
        print_json({**facts, "file": str(path)} if path is not None else {**facts, "bundle": "".join(lines)})
    elif path is not None:
        click.echo(f"wrote {len(document.ops)} ops of {printable(genesis.name)} to {path}")
    else:
        for line in lines:
            click.echo(line, nl=False)


@click.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--join-fleet", is_flag=True, help="make a box that belongs to no fleet part of the bundle's")
@box_command
def import_bundle(place: Place, form: str, source: Path, join_fleet: bool) -> None:
    """Take in a bundle that `shoal export` wrote; - reads standard input. Every op is checked as if from the network.

    Exit code 5 where some ops were refused, 1 where all were.
    """
    bundle = _read(source)
    access = place.access()
    genesis = _genesis_to_adopt(place, bundle, join_fleet)
    order = _in_order(bundle.ops)
    raws = [bundle.ops[index] for index in order]
    found = _offer(access, raws, genesis)
    states = Counter(outcome.state for outcome in found)
    reasons = Counter(outcome.reason for outcome in found if outcome.state == "refused")
    refused = [
        {"record": index + 1, "op": _id_of(bundle.ops[index]), "reason": outcome.reason}
        for index, outcome in zip(order, found, strict=True)
        if outcome.state == "refused"
    ]
    if form == "json":
        print_json(
            {
                "new": states["new"],
                "held": states["held"],
                "refused": states["refused"],
                "reasons": dict(reasons),
                "refused_ops": refused,
                "joined": genesis is not None,
            }
        )
    else:
        if genesis is not None:
            click.echo(f"this box now belongs to the fleet {printable(genesis.name)}")
        click.echo(f"{states['new']} new, {states['held']} held already, {states['refused']} refused")
        for reason, count in sorted(reasons.items()):
            click.echo(f"  refused: {count} x {reason}")
        for one in refused[:_SHOWN]:
            known = f"op {str(one['op'])[:12]}" if one["op"] is not None else "too short for an op"
            click.echo(f"    record {one['record']} ({known}): {one['reason']}")
    if refused:
        sys.exit(exits.DEGRADED if len(refused) < len(raws) else exits.FAILED)


def _genesis_to_adopt(place: Place, bundle: Bundle, join_fleet: bool) -> Genesis | None:
    """The genesis to hand over, for a box without a fleet; raises ClientError where the bundle does not fit."""
    known = genesis_of(place)
    if known is None:
        if bundle.genesis is None:
            raise ClientError("no_fleet", "this box belongs to no fleet, and the bundle names none")
        if not join_fleet:
            raise ClientError(
                "no_fleet",
                f"this box belongs to no fleet; to make it part of {bundle.genesis.name!r}, add --join-fleet",
            )
        return bundle.genesis
    if bundle.genesis is not None and bundle.genesis.fleet_id != known.fleet_id:
        raise ClientError(
            "other_fleet",
            f"the bundle is of the fleet {bundle.genesis.name!r} ({bundle.genesis.fleet_id.hex()[:16]}…), this box"
            f" belongs to {known.name!r} ({known.fleet_id.hex()[:16]}…); nothing was taken in",
        )
    return None


def _in_order(raws: Sequence[bytes]) -> list[int]:
    """An order in which ops come after those they rest on: by time, facts last; what cannot be read comes first."""
    from fleet.document.op import read_op
    from fleet.errors import RefusedOpError

    places = []
    for index, raw in enumerate(raws):
        try:
            op = read_op(raw)
        except RefusedOpError:
            places.append((0, 0, 0, index))
        else:
            places.append((1 + (op.kind == "node"), int(op.kind != "cert"), op.hlc, index))
    return [index for *_, index in sorted(places)]


def _offer(access: DocumentAccess, raws: Sequence[bytes], genesis: Genesis | None) -> list[Outcome]:
    """Offer ops, and those again that rested on others which came later, as long as that helps."""
    from fleet.document.acceptance import PASSING

    outcomes = list(access.offer(raws, genesis))
    while True:
        again = [index for index, one in enumerate(outcomes) if one.state == "refused" and one.reason in PASSING]
        if not again:
            return outcomes
        second = access.offer([raws[index] for index in again])
        if all(one.state == "refused" for one in second):
            return outcomes
        for index, one in zip(again, second, strict=True):
            outcomes[index] = one


def _id_of(raw: bytes) -> str | None:
    from fleet.document.op import SIGNATURE_BYTES, op_id

    return op_id(raw[:-SIGNATURE_BYTES]).hex() if len(raw) > SIGNATURE_BYTES else None


def _read(source: Path) -> Bundle:
    from fleet.document.bundle import read_bundle
    from fleet.errors import RefusedOpError

    try:
        if str(source) == _STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_TEXT + 1)
        else:
            with source.open("rb") as file:
                data = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise ClientError("usage", f"cannot read {source}: {error.strerror}") from None
    if len(data) > MAX_TEXT:
        raise ClientError("usage", f"{source} is larger than {MAX_TEXT} bytes; this is no bundle of a fleet")
    try:
        return read_bundle(data.decode("ascii", "replace").splitlines())
    except RefusedOpError as error:
        raise ClientError("bundle", f"{source}: {error.message}", error.details) from None


def _write(path: Path, lines: Iterator[str]) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("x", encoding="ascii") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ClientError("failed", f"cannot write {path}: {error.strerror or error}") from None
