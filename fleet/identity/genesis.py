"""Genesis: the record that a fleet starts from. Its hash is the fleet's id; it can never change."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from fleet import cbor
from fleet.errors import RefusedOpError
from fleet.identity.keys import PUBLIC_KEY_BYTES

MAX_GENESIS: Final = 4096
MAX_KEYS: Final = 16
MAX_NAME: Final = 64
_VERSION: Final = 1
_NONCE_BYTES: Final = 16


@dataclass(frozen=True)
class Genesis:
    """The fleet's name, its recovery keys (rank 0, kept offline, never revoked) and its first admins (rank 1)."""

    name: str
    recovery: tuple[bytes, ...]
    admins: tuple[bytes, ...]
    nonce: bytes

    @classmethod
    def new(cls, name: str, recovery: Iterable[bytes], admins: Iterable[bytes]) -> Genesis:
        """A genesis with a fresh nonce, so that two fleets of one name differ; raises RefusedOpError as `read` does."""
        made = cls(name, tuple(sorted(set(recovery))), tuple(sorted(set(admins))), secrets.token_bytes(_NONCE_BYTES))
        return cls.read(made.raw)

    @classmethod
    def read(cls, raw: bytes) -> Genesis:
        """Decode; raises RefusedOpError for what is past a limit, malformed or not canonical."""
        if len(raw) > MAX_GENESIS:
            raise RefusedOpError("size", f"a genesis has at most {MAX_GENESIS} bytes, this one has {len(raw)}")
        try:
            fields = cbor.decode_canonical(raw)
        except cbor.CborError as error:
            raise RefusedOpError("form", f"not a genesis: {error}") from None
        if not isinstance(fields, dict) or set(fields) != {"v", "name", "recovery", "admins", "nonce"}:
            raise RefusedOpError("form", "not a genesis: wrong fields")
        name, nonce = fields["name"], fields["nonce"]
        if fields["v"] != _VERSION or type(fields["v"]) is not int:
            raise RefusedOpError("form", "a genesis of an unknown version; update shoal")
        if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise RefusedOpError("form", f"a fleet's name is 1 to {MAX_NAME} printable characters")
        if type(nonce) is not bytes or len(nonce) != _NONCE_BYTES:
            raise RefusedOpError("form", "not a genesis: the nonce has 16 bytes")
        recovery, admins = _keys(fields["recovery"]), _keys(fields["admins"])
        if not admins or set(recovery) & set(admins):
            raise RefusedOpError("form", "a genesis has at least one admin, and no admin is also a recovery key")
        return cls(name, recovery, admins, nonce)

    @cached_property
    def raw(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(
            {
                "v": _VERSION,
                "name": self.name,
                "recovery": list(self.recovery),
                "admins": list(self.admins),
                "nonce": self.nonce,
            }
        )

    @cached_property
    def fleet_id(self) -> bytes:
        """blake2b-256 of the canonical bytes."""
        return hashlib.blake2b(self.raw, digest_size=32).digest()


def _keys(value: object) -> tuple[bytes, ...]:
    if type(value) is not list or len(value) > MAX_KEYS:
        raise RefusedOpError("form", f"a genesis lists at most {MAX_KEYS} keys of each sort")
    if not all(type(key) is bytes and len(key) == PUBLIC_KEY_BYTES for key in value):
        raise RefusedOpError("form", "not a genesis: a key has 32 bytes")
    if any(a >= b for a, b in pairwise(value)):
        raise RefusedOpError("form", "not a genesis: its keys are not sorted")
    return tuple(value)
