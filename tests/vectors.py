"""Test vectors of the fleet document's format, for other implementations: `python -m tests.vectors` writes them.

Every key is derived from a name: seed = SHA-256("shoal vector " + name).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fleet.document import bodies
from fleet.document.bodies import FirewallEntry, Invite
from fleet.document.op import Kind, Op, write_op
from fleet.document.view import View, fold
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity

TARGET = Path(__file__).parents[1] / "docs" / "fleet-document-vectors.json"
INVITE_ID = "00112233445566778899aabbccddeeff"


def key(name: str) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"shoal vector " + name.encode()).digest())


RECOVERY, ADMIN, SECOND, BOX, OTHER, GUEST, SECRET = map(
    key, ("recovery", "admin", "second admin", "box", "other box", "guest", "invite secret")
)
GENESIS = Genesis("vectors", (RECOVERY.public_key,), (ADMIN.public_key,), bytes(range(16)))


def ops() -> dict[str, Op]:
    """Named ops, each with the rule it shows."""
    made: dict[str, Op] = {}

    def write(name: str, author: Identity, seq: int, hlc: int, kind: Kind, path: str, body: object, *sup: str) -> None:
        made[name] = write_op(
            author,
            GENESIS.fleet_id,
            seq=seq,
            hlc=hlc << 16,
            kind=kind,
            path=path,
            body=body,
            sup=[made[one].id for one in sup],
        )

    invite = Invite(SECRET.public_key, 1, 2_000_000_000_000, None, (("site", "berlin"),))
    proof = bodies.prove_invite(SECRET, GENESIS.fleet_id, INVITE_ID, OTHER.public_key)
    join = bodies.vouch(BOX, GENESIS.fleet_id, INVITE_ID, OTHER.public_key, SECRET.public_key, proof, 1005 << 16)
    write("cert of a member", ADMIN, 1, 1000, "cert", BOX.public_key.hex(), "member")
    write("cert of an admin", ADMIN, 2, 1001, "cert", SECOND.public_key.hex(), "admin")
    write("invite", ADMIN, 3, 1002, "cfg", f"invite/{INVITE_ID}", invite.body())
    write("fact", BOX, 1, 1003, "node", "node", {"name": "pos-1", "labels": {"site": "berlin"}, "cpus": 4})
    write("later fact at the same path", BOX, 2, 1004, "node", "node", {"name": "pos-1a"})
    write("join", OTHER, 1, 1006, "join", INVITE_ID, join.body())
    write(
        "allow of a guest",
        ADMIN,
        4,
        1007,
        "fw",
        GUEST.public_key.hex(),
        FirewallEntry("allow", frozenset({"infer"})).body(),
    )
    write("deny", SECOND, 1, 1008, "fw", OTHER.public_key.hex(), FirewallEntry("deny").body())
    write(
        "allow that has not seen the deny", ADMIN, 5, 1009, "fw", OTHER.public_key.hex(), FirewallEntry("allow").body()
    )
    write("setting", ADMIN, 6, 1010, "cfg", "model/smol", {"source": "a"})
    write("concurrent setting", SECOND, 2, 1011, "cfg", "model/smol", {"source": "b"})
    return made


def summary(view: View) -> dict[str, Any]:
    """What a view says of the keys and paths in the vectors."""
    names = {"box": BOX, "other box": OTHER, "guest": GUEST, "admin": ADMIN, "second admin": SECOND}
    return {
        "members": sorted(one for one, identity in names.items() if identity.public_key in view.authority.members),
        "admins": {
            one: view.authority.rank[identity.public_key]
            for one, identity in names.items()
            if view.authority.is_admin(identity.public_key)
        },
        "admitted": {
            one: sorted(view.standing(identity.public_key).scopes)
            for one, identity in names.items()
            if view.standing(identity.public_key).admitted
        },
        "settings": {path: setting.op.id.hex() for path, setting in view.settings.items()},
        "conflicts": sorted(view.conflicts),
        "name of box": view.box(BOX.public_key).node.name,
    }


def vectors() -> dict[str, Any]:
    """All of them, as plain values."""
    made = ops()
    return {
        "seeds": {
            name: hashlib.sha256(b"shoal vector " + name.encode()).hexdigest()
            for name in ("recovery", "admin", "second admin", "box", "other box", "guest", "invite secret")
        },
        "genesis": GENESIS.raw.hex(),
        "fleet_id": GENESIS.fleet_id.hex(),
        "ops": {name: {"raw": op.raw.hex(), "id": op.id.hex()} for name, op in made.items()},
        "view": summary(fold(GENESIS, made.values())),
        "view after the second admin is revoked up to seq 0": summary(
            fold(
                GENESIS,
                [
                    *made.values(),
                    write_op(
                        ADMIN,
                        GENESIS.fleet_id,
                        seq=7,
                        hlc=1012 << 16,
                        kind="revoke",
                        path=SECOND.public_key.hex(),
                        body=0,
                    ),
                ],
            )
        ),
        "refused": {
            "a fact or a join with a sup that is not empty": "limits",
            "unsorted sup, or any other form that is not canonical": "form",
            "raw with its last byte changed": "signature",
            "the same op for another fleet": "other_fleet",
        },
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(vectors(), indent=1, sort_keys=True) + "\n")
