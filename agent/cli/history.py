"""`shoal history`: what was written into the fleet document, by whom, and whether it counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, box_command
from agent.cli.output import print_json, styled, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.naming import Names
    from agent.cli.verdict import Verdicts
    from fleet.document.op import Op

_DEFAULT_LIMIT: Final = 50
_HEADER: Final = ("WHEN (UTC)", "WHO", "KIND", "PATH", "VALUE", "OP", "COUNTS")
_RIGID: Final = ("WHEN (UTC)", "KIND", "OP")
_LAST_MS: Final = 253402300799_000


@click.command()
@click.option("--of", "what", metavar="KEY|PATH", help="only what a key wrote or what was written about it, or a path")
@click.option(
    "--limit", type=click.IntRange(0), default=_DEFAULT_LIMIT, show_default=True, help="the latest N; 0 for all"
)
@click.option("--facts", is_flag=True, help="also what boxes say of themselves")
@box_command
def history(place: Place, form: str, what: str | None, limit: int, facts: bool) -> None:
    """List the ops of the fleet document in order: when, who, what, and whether it counts."""
    from agent.cli.naming import Names
    from agent.cli.verdict import Verdicts

    document = place.access().read(facts=True)
    names, verdicts = Names(document.view), Verdicts(document.view, list(document.ops))
    ops = [op for op in document.ops if facts or op.kind != "node"]
    if what is not None:
        ops = _about(ops, what, names)
    ops.sort(key=lambda op: (op.hlc, op.author, op.seq, op.id))
    shown = ops[-limit:] if limit else ops
    found = [op_facts(op, verdicts, names) for op in shown]
    if form == "json":
        print_json({"total": len(ops), "ops": found})
        return
    if not found:
        click.echo("no op matches" if what is not None else "the document is empty")
        return
    click.echo(op_table(found))
    if len(shown) < len(ops):
        click.echo(f"(the latest {len(shown)} of {len(ops)}; --limit 0 shows all)")
    bad = sum(not fact["signature"] for fact in found)
    if bad:
        click.echo(styled(f"{bad} signatures do not hold: this box's disk was tampered with", fg="red"))


def _about(ops: Sequence[Op], what: str, names: Names) -> list[Op]:
    """Ops of a path (or of all below it), or those that a key wrote or that name it."""
    by_path = [op for op in ops if op.path == what or op.path.startswith(what.rstrip("/") + "/")]
    if by_path:
        return by_path
    try:
        key = names.find(what)
    except ClientError:
        if "/" in what:
            return []
        raise
    return [op for op in ops if op.author == key or (op.kind in ("cert", "revoke", "fw") and op.subject == key)]


def iso_time(hlc: int) -> str:
    """The wall time of a timestamp; one beyond the year 9999, which an op may hold, is shown as its end."""
    from fleet.document.clock import milliseconds

    return datetime.fromtimestamp(min(milliseconds(hlc), _LAST_MS) / 1000, UTC).isoformat(timespec="milliseconds")


def op_facts(op: Op, verdicts: Verdicts, names: Names) -> dict[str, Any]:
    """One op with everything that is known of it, in plain values."""
    from agent.cli.verdict import plain_value, value_text
    from fleet.document.op import is_key_path, signature_holds
    from fleet.document.plain_json import text_of
    from fleet.identity.keys import peer_id_from_public_key

    why_not = verdicts.why_not(op)
    subject = peer_id_from_public_key(op.subject) if op.kind != "join" and is_key_path(op.path) else None
    return {
        "id": op.id.hex(),
        "time": iso_time(op.hlc),
        "hlc": op.hlc,
        "author": peer_id_from_public_key(op.author),
        "author_name": names.of(op.author),
        "seq": op.seq,
        "kind": op.kind,
        "path": op.path,
        "subject": subject,
        "subject_name": names.of(op.subject) if subject is not None else None,
        "value": json.loads(text_of(plain_value(op))),
        "value_text": value_text(op, names),
        "replaces": [old.hex() for old in op.sup],
        "counts": not why_not,
        "why_not": why_not,
        "signature": signature_holds(op),
    }


def op_table(facts: Sequence[dict[str, Any]]) -> str:
    """Ops in a table, one a row."""
    return table(_HEADER, [_row(fact) for fact in facts], rigid=_RIGID, keep_end=("WHO",), spare=("OP",))


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    counts = f"no: {fact['why_not']}" if fact["why_not"] else "yes"
    return (
        str(fact["time"])[:19].replace("T", " "),
        str(fact["author_name"]),
        str(fact["kind"]),
        str(fact["subject_name"] or fact["path"]),
        str(fact["value_text"]),
        str(fact["id"])[:12],
        counts if fact["signature"] else "no: the signature does not hold",
    )
