"""`shoal admit`: certify a key as a box of the fleet, without an invite, or after its claim of one came too late."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable

if TYPE_CHECKING:
    from agent.claims import LostClaim
    from agent.cli.naming import Names
    from fleet.document.firewall import Standing


@click.command()
@click.argument("key")
@admin_key_option
@yes_option
@box_command
def admit(place: Place, form: str, key: str, admin_key: Path, yes: bool) -> None:
    """Make a key a box of the fleet, without an invite, or after its claim of one came too late.

    KEY is a PeerID, 64 hex digits, a box's name, or the end of a known PeerID. A revoked key never comes back.
    """
    from agent.claims import is_member, lost_claims_of
    from agent.cli.effect import describe, effects, with_ops
    from agent.cli.naming import Names
    from fleet.document.replica import Draft
    from fleet.identity.keys import peer_id_from_public_key

    access = place.access()
    document = access.read(facts=True)
    view, names = document.view, Names(document.view)
    subject = names.find(key)
    peer_id, standing = peer_id_from_public_key(subject), view.standing(subject)
    if subject in view.authority.revoked:
        raise ClientError("denied", _revoked(names.of(subject)), {"key": peer_id, "standing": standing.reason})
    claims = lost_claims_of(view.authority, subject)
    result: dict[str, Any] = {
        "key": peer_id,
        "name": names.of(subject),
        "before": standing.reason,
        "settles": [claim.invite_id for claim in claims],
    }
    if is_member(view.governance, subject):
        if form == "json":
            print_json({**result, "after": standing.reason, "admitted": standing.admitted, "changes": [], "ops": []})
        else:
            click.echo(printable(f"nothing to do: {names.of(subject)} is a member already"))
            _still_out(standing, peer_id)
        return
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, [Draft("cert", subject.hex(), "member")])
    after_view = with_ops(document, ops)
    after = after_view.standing(subject)
    if not is_member(after_view.governance, subject):
        raise ClientError("denied", f"the certificate that {admin_key} signs does not count; see: shoal admin ls")
    changes = effects(view, after_view)
    result |= {"after": after.reason, "admitted": after.admitted, "changes": [change.plain() for change in changes]}
    lines = [f"admit {names.of(subject)}  {peer_id}", f"  {describe(standing)} -> {describe(after)}"]
    lines += [f"  {_settled(claim, names)}" for claim in claims]
    lines += [change.text() for change in changes if change.subject != peer_id]
    agree(form, yes, printable("\n".join(lines), keep_lines=True), result)
    admin.hand_over(access, document, ops)
    if form == "json":
        print_json({**result, "ops": [op.id.hex() for op in ops]})
        return
    click.echo(printable(f"{names.of(subject)} is now a member"))
    _still_out(after, peer_id)
    if not claims and not standing.admitted:
        click.echo(
            "it still needs the fleet's document, if it has never had it: shoal export --file FILE here, shoal import"
            " --join-fleet FILE there"
        )


def _revoked(name: str) -> str:
    return (
        f"{name} was revoked, and a revoked key never comes back; make the box a new identity (shoal init in a folder"
        " of its own), and let that one in: shoal invite, or shoal admit with its PeerID"
    )


def _settled(claim: LostClaim, names: Names) -> str:
    from agent.claims import late_text

    return f"{late_text(claim.invite_id, [names.of(key) for key in claim.taken_by])}; this settles it"


def _still_out(standing: Standing, peer_id: str) -> None:
    """A member that is not let in all the same: by whose word, and what lifts it."""
    if not standing.admitted:
        click.echo(f"but it stays out: {standing.reason}; to let it in: shoal firewall allow {peer_id}")
