"""`shoal fleet`: found a fleet, and see what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import ClientError
from agent.cli.command import ADMIN_KEY_NAME, KEYS_DIR, RECOVERY_KEY_NAME, Place, box_command, genesis_of
from agent.cli.output import print_json, printable, styled

if TYPE_CHECKING:
    from fleet.identity.keys import Identity


@click.group()
def fleet() -> None:
    """Found a fleet, and see what it is."""


@fleet.command("init")
@click.option("--name", required=True, help="what people call the fleet, at most 64 characters")
@click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=KEYS_DIR,
    show_default=True,
    help="where the admin key and the recovery key go; a key that is there is used, never overwritten",
)
@box_command
def init(place: Place, form: str, name: str, folder: Path) -> None:
    """Found a fleet: make its keys, and this box its first member."""
    from agent.cli.admin_key import AdminKey
    from agent.cli.document import Document
    from fleet.document.replica import Draft
    from fleet.identity.genesis import Genesis
    from fleet.identity.keys import public_key_from_peer_id

    box = public_key_from_peer_id(place.peer_id())
    known = genesis_of(place)
    if known is not None:
        raise ClientError(
            "fleet_exists", f"this box already belongs to the fleet {known.name!r}; see: shoal fleet show"
        )
    Genesis.new(name, [bytes(32)], [b"\1" * 32])  # refuses a bad name before any key is made
    admin_file, recovery_file = folder / ADMIN_KEY_NAME, folder / RECOVERY_KEY_NAME
    made = [str(path) for path in (admin_file, recovery_file) if not path.exists()]
    admin, recovery = _key(admin_file), _key(recovery_file)
    genesis = Genesis.new(name, [recovery.public_key], [admin.public_key])
    document = Document(genesis, [])
    key = AdminKey(admin_file)
    key.hand_over(place.access(), document, key.sign(document, [Draft("cert", box.hex(), "member")]), genesis)
    if form == "json":
        print_json(
            {
                "fleet": genesis.fleet_id.hex(),
                "name": name,
                "box": place.peer_id(),
                "admin": admin.peer_id,
                "admin_key": str(admin_file),
                "recovery": recovery.peer_id,
                "recovery_key": str(recovery_file),
                "made": made,
            }
        )
        return
    click.echo(f"founded the fleet {printable(name)}, with this box as its first member\n")
    click.echo(f"  fleet id       {genesis.fleet_id.hex()}")
    for what, path in (("admin key", admin_file), ("recovery key", recovery_file)):
        click.echo(f"  {what:<15}{path}{'' if str(path) in made else '   (was there; used as it is)'}")
    click.echo(
        f"\nWhoever has the admin key rules the fleet: keep {admin_file} private, and a copy of it safe.\n"
        + styled(
            f"Move {recovery_file} to offline storage now (a USB stick in a safe), and delete it here.",
            fg="yellow",
            bold=True,
        )
        + "\nIt is needed only to replace an admin key that is lost or stolen (shoal admin recover)."
    )
    click.echo("\nlet other boxes in with: shoal invite")


@fleet.command("show")
@box_command
def show(place: Place, form: str) -> None:
    """Print the fleet's name, id, admins, and what is in dispute."""
    from agent.cli.boxes import known_fleet

    known = known_fleet(place)
    if form == "json":
        print_json({"source": known.source, "fleet": known.fleet})
        return
    for line in _lines(known.fleet, known.source):
        click.echo(printable(line))


def _lines(facts: dict[str, Any], source: str) -> list[str]:
    lines = [
        f"fleet     {facts['name']}",
        f"id        {facts['id']}",
        f"boxes     {facts['boxes']}" + (f", and {facts['revoked']} keys revoked" if facts["revoked"] else ""),
        f"ops       {facts['ops']}",
        f"policy    {facts['policy']['mode']}, scopes {', '.join(facts['policy']['scopes']) or 'none'}",
    ]
    for admin in facts["admins"]:
        what = "recovery key" if admin["rank"] == 0 else f"admin, rank {admin['rank']}"
        cut = f"; revoked, its ops up to {admin['cut_at']} count" if admin["cut_at"] is not None else ""
        forked = f"; two ops with number {admin['forked_at']}, not believed" if admin["forked_at"] is not None else ""
        lines.append(f"key       {admin['key']}  {what}{cut}{forked}")
    lines += [f"conflict  {path}: admins set different values; see: shoal get {path}" for path in facts["conflicts"]]
    lines += [
        f"conflict  invite {claim['invite']}: {claim['key']} claimed it too late; shoal admit it, or revoke it"
        for claim in facts["lost_claims"]
    ]
    if facts["refused_by"]:
        lines.append("warning   every box that answers refuses this one; see `shoal doctor`")
    if facts["unsaved"]:
        lines.append("warning   the disk does not take what this box learns; see `shoal doctor`")
    if source == "disk":
        lines.append("(read from the disk; the agent does not run)")
    return lines


def _key(path: Path) -> Identity:
    """A key, made where there is none; the variables that name a box's own identity do not count here."""
    from fleet.identity import keys

    return keys.load(path, env={}, create=True)
