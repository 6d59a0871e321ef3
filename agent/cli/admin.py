"""`shoal admin`: who may change the fleet, and how to recover when an admin's key is lost or stolen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import ClientError
from agent.cli.command import (
    KEYS_DIR,
    RECOVERY_KEY_NAME,
    Place,
    admin_key_option,
    agree,
    box_command,
    load_admin_key,
    reported,
    yes_option,
)
from agent.cli.output import output_option, print_json, printable, table

if TYPE_CHECKING:
    from agent.cli.effect import Effect


@click.group()
def admin() -> None:
    """Say who may change the fleet; recover when an admin's key is lost or stolen."""


@admin.command("key")
@admin_key_option
@click.option("--create", is_flag=True, help="make the key where there is none")
@output_option
def key(admin_key: Path, create: bool, form: str) -> None:
    """Print the PeerID of an admin key, for `shoal admin add` elsewhere; with --create, make it first."""
    from fleet.identity import keys

    with reported(form):
        if not create and not admin_key.exists():
            raise ClientError("identity", f"there is no admin key at {admin_key}; make one with --create")
        made = not admin_key.exists()
        identity = keys.load(admin_key, env={}, create=create)
    if form == "json":
        print_json({"key": identity.peer_id, "hex": identity.public_key.hex(), "file": str(admin_key), "made": made})
        return
    click.echo(identity.peer_id)
    click.echo(f"{'made' if made else 'read'} {admin_key}; an admin lets it in with: shoal admin add PEERID", err=True)


@admin.command("add")
@click.argument("key")
@admin_key_option
@box_command
def add(place: Place, form: str, key: str, admin_key: Path) -> None:
    """Make a key an admin, one rank below the one that signs this."""
    from agent.cli.effect import effects, with_ops
    from agent.cli.naming import Names
    from fleet.document.replica import Draft
    from fleet.identity.keys import peer_id_from_public_key

    access = place.access()
    document = access.read(facts=True)
    names = Names(document.view)
    subject = names.find(key)
    if document.view.authority.is_admin(subject):
        _print(form, [], [], f"nothing to do: {names.of(subject)} is an admin already")
        return
    signer = load_admin_key(admin_key)
    ops = signer.sign(document, [Draft("cert", subject.hex(), "admin")])
    after = with_ops(document, ops)
    if not after.authority.is_admin(subject):
        raise ClientError(
            "denied", f"{names.of(subject)} was revoked or is not believed; make a new key for this admin"
        )
    signer.hand_over(access, document, ops)
    rank = after.authority.rank[subject]
    done = f"{peer_id_from_public_key(subject)} is now an admin of rank {rank}"
    _print(form, effects(document.view, after), [op.id.hex() for op in ops], done)


@admin.command("ls")
@box_command
def ls(place: Place, form: str) -> None:
    """List the keys that may change the fleet, and those that no longer may."""
    from agent.cli.naming import Names
    from fleet.identity.keys import peer_id_from_public_key

    document = place.access().read(facts=True)
    names, authority = Names(document.view), document.view.authority
    ranks = sorted(authority.rank.items(), key=lambda item: (item[1], item[0]))
    admins = [
        {
            "key": peer_id_from_public_key(subject),
            "rank": rank,
            "recovery": rank == 0,
            "counts": authority.is_admin(subject),
            "cut_at": authority.cut.get(subject),
            "forked_at": authority.forked.get(subject),
            "ops": sum(op.author == subject for op in document.ops),
            "last_seq": document.highest_seq(subject),
        }
        for subject, rank in ranks
    ]
    if form == "json":
        print_json({"admins": admins})
        return
    rows = [
        (names.of(subject), str(one["rank"]), _standing(one), str(one["ops"]), str(one["key"]))
        for one, (subject, _) in zip(admins, ranks, strict=True)
    ]
    click.echo(table(("WHO", "RANK", "STANDING", "OPS", "KEY"), rows, keep_end=("WHO", "KEY"), spare=("OPS",)))


def _standing(one: dict[str, Any]) -> str:
    if one["cut_at"] is not None:
        return f"revoked, ops up to {one['cut_at']} count"
    if one["forked_at"] is not None:
        return f"not believed from op {one['forked_at']} on (two ops with one number)"
    return "recovery key" if one["recovery"] else "admin"


@admin.command("recover")
@click.option(
    "--recovery-key",
    type=click.Path(path_type=Path),
    default=KEYS_DIR / RECOVERY_KEY_NAME,
    show_default=True,
    help="the recovery key, back from its safe",
)
@click.option("--new-admin", required=True, metavar="KEY", help="the key that becomes an admin of rank 1")
@click.option("--revoke", "rogue", metavar="KEY", help="also cut off this key")
@click.option("--keep", type=click.IntRange(0), help="number of that key's last op that still counts; 0 for none")
@yes_option
@box_command
def recover(
    place: Place, form: str, recovery_key: Path, new_admin: str, rogue: str | None, keep: int | None, yes: bool
) -> None:
    """Give the fleet a new admin with the recovery key, and cut off one that is lost or stolen."""
    from agent.cli.effect import effects, with_ops
    from agent.cli.naming import Names
    from agent.cli.revoke import choose_keep
    from fleet.document.replica import Draft

    if keep is not None and rogue is None:
        raise click.UsageError("--keep belongs to --revoke")
    access = place.access()
    document = access.read(facts=True)
    names = Names(document.view)
    subject = names.find(new_admin)
    signer = load_admin_key(recovery_key)
    if signer.identity.public_key not in document.fleet.recovery:
        raise ClientError("denied", f"{recovery_key} is no recovery key of this fleet; see: shoal admin ls")
    authority = document.view.authority
    already = authority.is_admin(subject) and authority.rank[subject] <= 1
    drafts = [] if already else [Draft("cert", subject.hex(), "admin")]
    if rogue is not None:
        cut = names.find(rogue)
        if cut == subject:
            raise ClientError("usage", "the new admin's key and the one to revoke are the same; make a new key")
        last = choose_keep(document, names, cut, keep, ask=form != "json" and not yes)
        drafts.append(Draft("revoke", cut.hex(), last))
    ops = signer.sign(document, drafts)
    after = with_ops(document, ops)
    if not after.authority.is_admin(subject):
        raise ClientError(
            "denied", f"{names.of(subject)} was revoked or is not believed; make a new key for this admin"
        )
    changes = effects(document.view, after)
    if rogue is not None:
        text = "\n".join(["this changes:", *(change.text() for change in changes)])
        agree(form, yes, printable(text, keep_lines=True), {"changes": [change.plain() for change in changes]})
    signer.hand_over(access, document, ops)
    _print(form, changes, [op.id.hex() for op in ops], f"{names.of(subject)} is an admin of rank 1")
    if form != "json":
        click.echo("put the recovery key back into its safe")


def _print(form: str, changes: list[Effect], ops: list[str], done: str) -> None:
    if form == "json":
        print_json({"changes": [change.plain() for change in changes], "ops": ops})
    else:
        click.echo(printable(done))
