"""Invite tokens: what a new box is handed, by file, environment variable or QR code, to be let into the fleet.

A token carries the fleet's genesis, the admin's signed invite (a cfg op at invite/ID), the invite's secret, and where
to knock. The secret is the key with which the new box knocks and proves that it had the token; whoever reads a token
can use it, so it is a secret until it is used up or expired.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet import cbor
from fleet.document import bodies
from fleet.document.op import MAX_OP, Op, read_op, signature_holds
from fleet.document.settings import Setting
from fleet.errors import RefusedOpError
from fleet.identity.genesis import MAX_GENESIS, Genesis
from fleet.identity.keys import SEED_BYTES, Identity

PREFIX: Final = "shoal-join-1."
MAX_TOKEN: Final = 32 * 1024
MAX_ADDRS: Final = 16
_MAX_ADDR: Final = 256


@dataclass(frozen=True)
class Token:
    """An invite with its secret. `addrs` are multiaddrs, each ending in /p2p/PEERID, of boxes that know the invite."""

    genesis: Genesis
    op: Op
    secret: Identity = field(repr=False)
    addrs: tuple[str, ...]

    @property
    def invite_id(self) -> str:
        """The id that the join op names."""
        return self.op.path.removeprefix("invite/")

    @property
    def invite(self) -> bodies.Invite:
        """Its terms."""
        return bodies.read_invite(self.op.body)

    def text(self) -> str:
        """As it is handed over: one line of printable characters."""
        raw = cbor.encode([1, self.genesis.raw, self.op.raw, self.secret.seed, list(self.addrs)])
        return PREFIX + base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def new_invite_id() -> str:
    """A fresh invite id: 128 random bits in hex."""
    return secrets.token_hex(16)


def read_token(text: str) -> Token:
    """Decode and check a token, whitespace around it ignored.

    Raises RefusedOpError that says what is wrong: no token, cut short, or not signed by an author that fits.
    """
    text = text.strip()
    if len(text) > MAX_TOKEN:
        raise RefusedOpError("size", f"a token has at most {MAX_TOKEN} characters")
    if not text.startswith(PREFIX):
        raise RefusedOpError("form", f"not a join token: they start with {PREFIX} (see `shoal invite`)")
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        fields = cbor.decode_canonical(raw)
    except (binascii.Error, ValueError):
        raise RefusedOpError("form", "the join token is damaged or cut short; copy all of it") from None
    if not isinstance(fields, list) or len(fields) != 5 or fields[0] != 1 or type(fields[0]) is not int:
        raise RefusedOpError("form", "a join token of an unknown version; update shoal")
    _, genesis_raw, op_raw, seed, addrs = fields
    if type(genesis_raw) is not bytes or len(genesis_raw) > MAX_GENESIS or type(op_raw) is not bytes:
        raise RefusedOpError("form", "the join token is malformed")
    if len(op_raw) > MAX_OP or type(seed) is not bytes or len(seed) != SEED_BYTES:
        raise RefusedOpError("form", "the join token is malformed")
    if type(addrs) is not list or len(addrs) > MAX_ADDRS:
        raise RefusedOpError("form", f"a join token names at most {MAX_ADDRS} addresses")
    if not all(type(addr) is str and 0 < len(addr) <= _MAX_ADDR for addr in addrs):
        raise RefusedOpError("form", "the join token names a malformed address")
    genesis, op = Genesis.read(genesis_raw), read_op(op_raw)
    if op.fleet != genesis.fleet_id or op.kind != "cfg" or not op.path.startswith("invite/"):
        raise RefusedOpError("form", "the join token's invite is not of its fleet")
    if not signature_holds(op):
        raise RefusedOpError("signature", "the join token's invite is not signed by its author")
    secret = Identity.from_seed(seed)
    if bodies.read_invite(op.body).key != secret.public_key:
        raise RefusedOpError("form", "the join token's secret does not fit its invite")
    return Token(genesis, op, secret, tuple(addrs))


@dataclass(frozen=True)
class Offer:
    """An invite as it stands in the view, and the boxes that have claimed it."""

    invite_id: str
    terms: bodies.Invite
    used_by: frozenset[bytes]

    def refusal(self, joiner: bytes, now_ms: int) -> str | None:
        """Why a box is not let in with it at this moment by this box's clock; None where it is.

        A box that has claimed it already may come again: it may have crashed before it had written that down.
        """
        if now_ms > self.terms.expires:
            return "the invite has expired"
        if self.terms.bound_to not in (None, joiner):
            return "the invite is bound to another box's key"
        if joiner not in self.used_by and len(self.used_by) >= self.terms.uses:
            return "the invite is used up" if self.used_by else "the invite was withdrawn"
        return None


def offers(settings: Mapping[str, Setting], governing: Iterable[Op]) -> dict[bytes, Offer]:
    """The invites among the settings, by the public half of their secret."""
    used: dict[str, set[bytes]] = {}
    for op in governing:
        if op.kind == "join":
            used.setdefault(op.path, set()).add(op.author)
    found = {}
    for path, setting in settings.items():
        if path.startswith("invite/"):
            terms = bodies.read_invite(setting.op.body)
            invite_id = path.removeprefix("invite/")
            found[terms.key] = Offer(invite_id, terms, frozenset(used.get(invite_id, ())))
    return found
