"""`shoal admit`: certify a key as a box of the fleet, without an invite, or after its claim of one came too late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable

if TYPE_CHECKING:
    from agent.claims import LostClaim
    from agent.cli.effect import Effect
    from agent.cli.naming import Names
    from fleet.document.firewall import Standing
    from fleet.document.op import Op
    from fleet.document.view import View


@dataclass(frozen=True)
class _Asked:
    """A key that is to be made a member: what it is now, and which lost claims of it that settles."""

    subject: bytes
    peer_id: str
    name: str
    before: Standing
    claims: Sequence[LostClaim]
    is_member: bool

    def plain(self, after: Standing) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "key": self.peer_id,
            "name": self.name,
            "before": self.before.reason,
            "settles": [claim.invite_id for claim in self.claims],
            "after": after.reason,
            "admitted": after.admitted,
        }


@click.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@admin_key_option
@yes_option
@box_command
def admit(place: Place, form: str, keys: tuple[str, ...], admin_key: Path, yes: bool) -> None:
    """Make keys boxes of the fleet, without an invite, or after their claim of one came too late.

    KEY is a PeerID, 64 hex digits, a box's name, or the end of a known PeerID. A revoked key never comes back. Of
    several keys all become members, or none where one cannot.
    """
    from agent.claims import is_member
    from agent.cli.effect import describe, effects, with_ops
    from agent.cli.naming import Names
    from fleet.document.replica import Draft

    access = place.access()
    document = access.read(facts=True)
    view, names = document.view, Names(document.view)
    found = {each.subject: each for each in (_asked(view, names, key) for key in keys)}
    new = [each for each in found.values() if not each.is_member]
    ops: list[Op] = []
    changes: list[Effect] = []
    after_view = view
    if new:
        admin = load_admin_key(admin_key)
        ops = admin.sign(document, [Draft("cert", each.subject.hex(), "member") for each in new])
        after_view = with_ops(document, ops)
        if not all(is_member(after_view.governance, each.subject) for each in new):
            raise ClientError("denied", f"the certificate that {admin_key} signs does not count; see: shoal admin ls")
        changes = effects(view, after_view)
    after = {each.subject: after_view.standing(each.subject) for each in found.values()}
    result: dict[str, Any] = {"changes": [change.plain() for change in changes]}
    each_result = [each.plain(after[each.subject]) for each in found.values()]
    # One key is answered as one has always been.
    result |= each_result[0] if len(keys) == 1 else {"boxes": each_result}
    if new:
        lines = []
        for each in new:
            lines.append(f"admit {each.name}  {each.peer_id}")
            lines.append(f"  {describe(each.before)} -> {describe(after[each.subject])}")
            lines += [f"  {_settled(claim, names)}" for claim in each.claims]
        asked = {each.peer_id for each in new}
        lines += [change.text() for change in changes if change.subject not in asked]
        agree(form, yes, printable("\n".join(lines), keep_lines=True), result)
        admin.hand_over(access, document, ops)
    if form == "json":
        print_json({**result, "ops": [op.id.hex() for op in ops]})
        return
    for each in found.values():
        said = "nothing to do: {} is a member already" if each.is_member else "{} is now a member"
        click.echo(printable(said.format(each.name)))
        _still_out(after[each.subject], each.peer_id)
    if any(not each.claims and not each.before.admitted for each in new):
        click.echo(
            "it still needs the fleet's document, if it has never had it: shoal export --file FILE here, shoal import"
            " --join-fleet FILE there"
        )


def _asked(view: View, names: Names, key: str) -> _Asked:
    from agent.claims import is_member, lost_claims_of
    from fleet.identity.keys import peer_id_from_public_key

    subject = names.find(key)
    peer_id, standing, name = peer_id_from_public_key(subject), view.standing(subject), names.of(subject)
    if subject in view.authority.revoked:
        raise ClientError("denied", _revoked(name), {"key": peer_id, "standing": standing.reason})
    claims = lost_claims_of(view.authority, subject)
    return _Asked(subject, peer_id, name, standing, claims, is_member(view.governance, subject))


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
