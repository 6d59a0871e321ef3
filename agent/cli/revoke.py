"""`shoal revoke`: shut a key out for good. What that would change is worked out and shown before it is done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.document import Document
    from agent.cli.naming import Names
    from fleet.document.op import Op

#: An admin's last ops that are shown, to choose where to cut.
_SHOWN: Final = 12


@click.command()
@click.argument("key")
@click.option("--keep", type=click.IntRange(0), help="number of the key's last op that still counts; 0 for none")
@admin_key_option
@yes_option
@box_command
def revoke(place: Place, form: str, key: str, keep: int | None, admin_key: Path, yes: bool) -> None:
    """Shut a key out of the fleet for good. It can only come back with a new identity.

    KEY is a PeerID, 64 hex digits, a box's name, or the end of a known PeerID. Of a box all ops count that this box
    holds; for an admin's key say with --keep which of them still do.
    """
    from agent.cli.effect import effects, with_ops
    from agent.cli.naming import Names
    from fleet.document.replica import Draft
    from fleet.identity.keys import peer_id_from_public_key

    access = place.access()
    document = access.read(facts=True)
    view, names = document.view, Names(document.view)
    subject = names.find(key)
    last = choose_keep(document, names, subject, keep, ask=form != "json" and not yes)
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, [Draft("revoke", subject.hex(), last)])
    after = with_ops(document, ops)
    if not any(op in after.authority.revoked.get(subject, ()) for op in ops):
        raise ClientError(
            "denied", f"{names.of(subject)} stands above the key {admin_key}; a recovery key can cut off an admin"
        )
    changes = effects(view, after)
    vouched = let_in_by(document, subject)
    result: dict[str, Any] = {
        "key": peer_id_from_public_key(subject),
        "name": names.of(subject),
        "keep": last,
        "already_revoked": subject in view.authority.revoked,
        "changes": [change.plain() for change in changes],
        "let_in_by_it": [peer_id_from_public_key(op.author) for op in vouched],
    }
    lines = [
        f"revoke {names.of(subject)}  {peer_id_from_public_key(subject)}",
        f"  its ops after number {last} do not count",
    ]
    lines += [change.text() for change in changes] or ["  nothing else changes"]
    if subject in view.boxes:
        lines.append("  every box that hears of it cuts its links to this key at once, work in progress included")
    if vouched:
        lines.append("  it let these boxes in; they stay, unless you revoke them too:")
        lines += [f"    {names.of(op.author)}  {peer_id_from_public_key(op.author)}" for op in vouched]
    agree(form, yes, printable("\n".join(lines), keep_lines=True), result)
    admin.hand_over(access, document, ops)
    if form == "json":
        print_json({**result, "ops": [op.id.hex() for op in ops]})
    else:
        click.echo(printable(f"revoked {names.of(subject)}"))


def let_in_by(document: Document, member: bytes) -> list[Op]:
    """The joins that a box countersigned and that hold."""
    from fleet.document import bodies

    members = document.view.authority.members.values()
    joins = [one.op for one in members if one.how == "join" and bodies.read_join(one.op.body).by == member]
    return sorted(joins, key=lambda op: op.hlc)


def choose_keep(document: Document, names: Names, key: bytes, keep: int | None, *, ask: bool) -> int:
    """The number of a key's last op that counts: as given; for a box its highest; for an admin's key as asked for.

    Raises ClientError `usage`, with the key's last ops, where nobody can be asked.
    """
    if keep is not None:
        return keep
    highest = document.highest_seq(key)
    if key not in document.view.authority.rank:
        return highest
    own = sorted((op for op in document.ops if op.author == key), key=lambda op: (op.seq, op.id))[-_SHOWN:]
    listed = "\n".join(_lines(own, names)) or "  it has written nothing that this box knows of"
    text = f"{names.of(key)} is an admin; its last ops:\n{listed}"
    if not (ask and sys.stdin.isatty()):
        details = {"highest_seq": highest, "ops": [{"seq": op.seq, "kind": op.kind, "path": op.path} for op in own]}
        message = f"{text}\nsay with --keep N up to which of them it is to be believed"
        raise ClientError("usage", message, details)
    click.echo(printable(text, keep_lines=True), err=True)
    return int(click.prompt("Keep its ops up to number", type=click.IntRange(0), default=highest, err=True))


def _lines(ops: Sequence[Op], names: Names) -> list[str]:
    from agent.cli.history import iso_time
    from agent.cli.verdict import value_text

    def about(op: Op) -> str:
        return names.of(op.subject) if op.kind in ("cert", "revoke", "fw") else op.path

    return [f"  {op.seq:>6}  {iso_time(op.hlc)[:19]}  {op.kind} {about(op)}: {value_text(op, names)}" for op in ops]
