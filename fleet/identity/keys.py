"""A box's key: where its seed comes from, who may read it, and the PeerID that follows from it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import base58
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from fleet.durable import make_private, sync_folder
from fleet.errors import IdentityError

SEED_ENV: Final = "SHOAL_IDENTITY_SEED"
SEED_FILE_ENV: Final = "SHOAL_IDENTITY_SEED_FILE"
SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
#: Multihash "identity" of a protobuf PublicKey {type: Ed25519, data: 32 bytes} (libp2p spec, peer-ids.md).
_PEER_ID_PREFIX: Final = b"\x00\x24\x08\x01\x12\x20"
_MAX_PEER_ID: Final = 64
_MAX_SEED_FILE: Final = 1024
#: Container runtimes mount secrets here, read-only and often readable by all inside the container.
_SECRETS_DIR: Final = Path("/run/secrets")


@dataclass(frozen=True)
class Identity:
    """An Ed25519 key. The seed never appears in `repr`."""

    seed: bytes = field(repr=False)
    public_key: bytes
    peer_id: str

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte seed; raises IdentityError for any other length."""
        if len(seed) != SEED_BYTES:
            raise IdentityError(f"an identity seed has {SEED_BYTES} bytes, this one has {len(seed)}")
        public_key = bytes(SigningKey(seed).verify_key)
        return cls(seed, public_key, peer_id_from_public_key(public_key))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032) of a message."""
        return SigningKey(self.seed).sign(message).signature


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is `public_key`'s over `message`; False for anything malformed."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def peer_id_from_public_key(public_key: bytes) -> str:
    """The PeerID (base58btc) of an Ed25519 public key; raises IdentityError unless it has 32 bytes."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise IdentityError(f"a public key has {PUBLIC_KEY_BYTES} bytes, this one has {len(public_key)}")
    return base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii")


def public_key_from_peer_id(peer_id: str) -> bytes:
    """The Ed25519 public key inside a PeerID.

    Raises IdentityError unless it is exactly what `peer_id_from_public_key` gives for a key that somebody can hold.
    A PeerID has no checksum, but 15 of 16 mistyped ones are not such a key: they are no point of the curve's
    prime-order subgroup (RFC 8032, section 5.1).
    """
    try:
        raw = base58.b58decode(peer_id) if 0 < len(peer_id) <= _MAX_PEER_ID else b""
    except ValueError:
        raw = b""
    public_key = raw[len(_PEER_ID_PREFIX) :]
    # Decoding ignores trailing space; a PeerID that is spelled differently would never compare equal.
    if len(public_key) != PUBLIC_KEY_BYTES or peer_id != base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii"):
        raise IdentityError("not the PeerID of an Ed25519 key (they start with 12D3KooW; see `shoal id`)")
    if not crypto_core_ed25519_is_valid_point(public_key):
        raise IdentityError("no box can have this PeerID, it is probably mistyped; copy it from `shoal id` on that box")
    return public_key


def load(seed_file: Path, env: Mapping[str, str] = os.environ, *, create: bool = True) -> Identity:
    """The identity of this box.

    In this order: the seed in SHOAL_IDENTITY_SEED (64 hex digits), the file that SHOAL_IDENTITY_SEED_FILE names, or
    `seed_file`, which is made (0600, in a 0700 folder) if it does not exist and `create` is set. A variable that is
    empty counts as not set. Raises IdentityError, with the command to run, for a seed that is missing or malformed,
    that others can read, or that anybody else can change. Below /run/secrets, where container runtimes mount secrets
    read-only for everybody inside, others may read it.
    """
    if env.get(SEED_ENV):
        return Identity.from_seed(_from_hex(env[SEED_ENV].strip(), SEED_ENV))
    if env.get(SEED_FILE_ENV):
        return Identity.from_seed(_read(Path(env[SEED_FILE_ENV])))
    try:
        missing = not seed_file.exists()
        if missing and create:
            _create(seed_file)
    except OSError as error:
        raise IdentityError(f"cannot make or reach the identity {seed_file}: {error.strerror or error}") from None
    if missing and not create:
        raise IdentityError(f"there is no identity at {seed_file}; make one with: shoal init")
    return Identity.from_seed(_read(seed_file))


def _from_hex(text: str, source: str) -> bytes:
    # bytes.fromhex skips spaces, so a text of the right length may still hold too few digits.
    if len(text) != 2 * SEED_BYTES or not set(text) <= set(string.hexdigits):
        raise IdentityError(
            f"{source} must hold 64 hex digits; restore it from a backup, or remove it for a new identity"
        )
    return bytes.fromhex(text)


def _read(path: Path) -> bytes:
    """A seed file: 64 hex digits, or 32 raw bytes."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(_MAX_SEED_FILE) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise IdentityError(f"cannot read the identity {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise IdentityError(f"the identity {path} is not a regular file")
    mode = stat.S_IMODE(found.st_mode)
    if mode & (0o022 if path.resolve().is_relative_to(_SECRETS_DIR) else 0o077):
        raise IdentityError(
            f"others can read or change the identity {path} (mode {mode:04o}); run: chmod 600 {shlex.quote(str(path))}"
        )
    # 32 bytes that are all hex digits are half of a text seed, not a raw one.
    if len(data) == SEED_BYTES and not set(data) <= set(string.hexdigits.encode()):
        return data
    return _from_hex(data.decode("latin-1").strip(), str(path))


def _create(path: Path) -> None:
    """Write a new seed so that a crash leaves either none or a whole one, and nobody else ever reads it."""
    make_private(path.parent)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a seed that another process has just made.
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
        # A power cut must not take back an identity that others already allow.
        sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)
