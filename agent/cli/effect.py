"""What ops would change, worked out before anybody hands them over: two views, one with them and one without. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.cli.document import Document
from agent.cli.naming import Names
from fleet.document.firewall import Standing
from fleet.document.op import MAX_SUP, Kind, Op
from fleet.document.replica import Draft
from fleet.document.view import View, fold
from fleet.identity.keys import peer_id_from_public_key

_GONE: Final = "-"


@dataclass(frozen=True)
class Effect:
    """One thing that changes. `about` is `box` (who may speak here), `admin`, or `setting`."""

    about: str
    subject: str
    name: str
    before: str
    after: str

    def plain(self) -> dict[str, str]:
        """For JSON."""
        return {
            "about": self.about,
            "subject": self.subject,
            "name": self.name,
            "before": self.before,
            "after": self.after,
        }

    def text(self) -> str:
        """One line for people."""
        return f"  {self.about:<8} {self.name}: {self.before} -> {self.after}"


def with_ops(document: Document, ops: Sequence[Op]) -> View:
    """The view that would follow from a document and further ops."""
    return fold(document.fleet, [*document.ops, *ops])


def effects(before: View, after: View) -> list[Effect]:
    """Every difference that people care about: standings, admins, settings."""
    names = Names(before)
    found = []
    for key in sorted({*_keys(before), *_keys(after)}):
        old, new = describe(before.standing(key)), describe(after.standing(key))
        if old != new:
            found.append(Effect("box", peer_id_from_public_key(key), names.of(key), old, new))
    for key in sorted({*before.authority.rank, *after.authority.rank}):
        old, new = _admin(before, key), _admin(after, key)
        if old != new:
            found.append(Effect("admin", peer_id_from_public_key(key), names.of(key), old, new))
    for path in sorted({*before.settings, *after.settings}):
        held, wanted = before.settings.get(path), after.settings.get(path)
        if (held.op.body if held else None) != (wanted.op.body if wanted else None):
            old = _GONE if held is None else f"by {names.of(held.op.author)}"
            new = _GONE if wanted is None else f"by {names.of(wanted.op.author)}"
            found.append(Effect("setting", path, path, old, new if new != old else "another value"))
    return found


def describe(standing: Standing) -> str:
    """A standing in a few words."""
    if not standing.admitted:
        return standing.reason
    return f"{standing.reason} [{', '.join(sorted(standing.scopes))}]"


def superseding(view: View, kind: Kind, path: str, body: object) -> list[Draft]:
    """Drafts that put a value in the place of all that is live at a path.

    Usually one; an op names at most 64 others, so more where more are live.
    """
    live = sorted(op.id for op in view.governance.live.get((kind, path), ()))
    return [Draft(kind, path, body, tuple(live[at : at + MAX_SUP])) for at in range(0, max(len(live), 1), MAX_SUP)]


def _keys(view: View) -> set[bytes]:
    return {*view.authority.members, *view.authority.revoked, *view.governance.firewall.named()}


def _admin(view: View, key: bytes) -> str:
    rank = view.authority.rank.get(key)
    if rank is None:
        return "no admin"
    if key in view.authority.cut:
        return f"cut after its op {view.authority.cut[key]}"
    return f"admin of rank {rank}" if key not in view.authority.forked else "not believed: two ops with one number"
