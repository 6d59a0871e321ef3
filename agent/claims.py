"""Claims of invites that came too late: whose, who took the uses, and what a box can do that is not in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet.document.authority import Authority
from fleet.document.invites import Token
from fleet.document.view import Governance
from fleet.identity.keys import peer_id_from_public_key


@dataclass(frozen=True)
class LostClaim:
    """A box that claimed an invite after its uses were gone. `taken_by` are the keys that have them, earliest first."""

    key: bytes
    invite_id: str
    taken_by: tuple[bytes, ...]

    def plain(self) -> dict[str, object]:
        """For JSON; keys as PeerIDs."""
        return {
            "key": peer_id_from_public_key(self.key),
            "invite": self.invite_id,
            "taken_by": [peer_id_from_public_key(key) for key in self.taken_by],
        }


def lost_claims(authority: Authority) -> tuple[LostClaim, ...]:
    """Every box that is kept out because its claim came too late, one entry for each invite that it lost."""
    found: dict[tuple[str, bytes], LostClaim] = {}
    for op in authority.surplus_joins:
        taken_by = _takers(authority, op.path)
        found.setdefault((op.path, op.author), LostClaim(op.author, op.path, taken_by))
    return tuple(found[place] for place in sorted(found))


def lost_claims_of(authority: Authority, key: bytes) -> tuple[LostClaim, ...]:
    """The claims that one key has lost."""
    return tuple(claim for claim in lost_claims(authority) if claim.key == key)


def _takers(authority: Authority, invite_id: str) -> tuple[bytes, ...]:
    """Who has the uses: claims are contested in their order, and the first that is surplus found none left."""
    lost = {op.author for op in authority.surplus_joins if op.path == invite_id}
    takers: dict[bytes, None] = {}
    for op in authority.contested.get(invite_id, ()):
        if op.author in lost:
            break
        takers[op.author] = None
    return tuple(takers)


def is_member(governance: Governance, key: bytes) -> bool:
    """Whether the document counts a key among the fleet's boxes; what the firewall says of it is another matter."""
    return key in governance.authority.members and key not in governance.authority.revoked


def late_text(invite_id: str, taken_by: Sequence[str]) -> str:
    """What happened to a claim that came too late; `taken_by` are names or PeerIDs."""
    takers = ", ".join(taken_by) or "others"
    return f"its claim of invite {invite_id} came after the uses were gone: {takers} took them"


def leads_nowhere(token: Token, key: bytes) -> str | None:
    """Why a box cannot even knock with a token, and the remedy: it names no other box. None where it does."""
    own = peer_id_from_public_key(key)
    if token.addrs and all(addr.rsplit("/p2p/", 1)[-1] == own for addr in token.addrs):
        return "the token names only this box's own addresses; run shoal join on the new box, with this token"
    return None


def useless_because(governance: Governance, key: bytes, token: Token) -> str | None:
    """Why a box that knows its fleet gets nowhere with a token's invite, whoever is asked, and the remedy.

    None where it is worth a try, and for a box that is in.
    """
    peer_id = peer_id_from_public_key(key)
    if key in governance.authority.revoked:
        return (
            "this box's key was revoked, and a revoked key never comes back; make the box a new identity (shoal init"
            " in a folder of its own), and join with that one"
        )
    standing = governance.firewall.standing(key)
    if is_member(governance, key) and not standing.admitted:
        return f"this box is {standing.reason}, and joining again changes nothing; on an admin's box: " + (
            f"shoal firewall allow {peer_id}"
        )
    for claim in lost_claims_of(governance.authority, key):
        if claim.invite_id == token.invite_id:
            takers = [peer_id_from_public_key(taker) for taker in claim.taken_by]
            return (
                f"this box has used this token, and {late_text(claim.invite_id, takers)}; ask an admin for a new token,"
                f" or for: shoal admit {peer_id}"
            )
    if is_member(governance, key) or governance.authority.counts(token.op):
        return None
    # An admin that this box has not heard of yet may have made it; one that it knows to be cut off has not.
    author = token.op.author
    if author in governance.authority.cut or author in governance.authority.forked:
        admin = peer_id_from_public_key(author)
        return (
            f"the admin who made this token, {admin}, was revoked or is not believed any more, and the token with it;"
            " ask another admin for a new one"
        )
    return None
