"""A box's key: where its seed comes from, who may read it, and the PeerID that follows from it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from fleet.errors import IdentityError

SEED_ENV: Final = "SHOAL_IDENTITY_SEED"
SEED_FILE_ENV: Final = "SHOAL_IDENTITY_SEED_FILE"
SEED_BYTES: Final = 32
#: Multihash "identity" of a protobuf PublicKey {type: Ed25519, data: 32 bytes} (libp2p spec, peer-ids.md).
_PEER_ID_PREFIX: Final = b"\x00\x24\x08\x01\x12\x20"
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
    """The PeerID (base58btc) of a 32-byte Ed25519 public key."""
    return base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii")


def public_key_from_peer_id(peer_id: str) -> bytes:
    """The Ed25519 public key inside a PeerID; raises IdentityError if it is not such a PeerID."""
    try:
        raw = base58.b58decode(peer_id) if 0 < len(peer_id) <= 64 else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PEER_ID_PREFIX) + 32 or not raw.startswith(_PEER_ID_PREFIX):
        raise IdentityError("not the PeerID of an Ed25519 key (they start with 12D3KooW; see `shoal id`)")
    return raw[len(_PEER_ID_PREFIX) :]


def load(seed_file: Path, env: Mapping[str, str] = os.environ, *, create: bool = True) -> Identity:
    """The identity of this box.

    In this order: the seed in SHOAL_IDENTITY_SEED (64 hex digits), the file that SHOAL_IDENTITY_SEED_FILE names, or
    `seed_file`, which is made (0600, in a 0700 folder) if it does not exist and `create` is set. Raises
    IdentityError, with the command to run, for a seed that is malformed or that others can read.
    """
    if env.get(SEED_ENV):
        return Identity.from_seed(_from_hex(env[SEED_ENV].strip(), SEED_ENV))
    if env.get(SEED_FILE_ENV):
        return Identity.from_seed(_read(Path(env[SEED_FILE_ENV])))
    if not seed_file.exists():
        if not create:
            raise IdentityError(f"there is no identity at {seed_file}; make one with: shoal init")
        _create(seed_file)
    return Identity.from_seed(_read(seed_file))


def _from_hex(text: str, source: str) -> bytes:
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise IdentityError(f"{source} must hold 64 hex digits; make a new identity with: shoal init")
    return seed


def _read(path: Path) -> bytes:
    """A seed file: 64 hex digits, or 32 raw bytes."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(1024)
    except OSError as error:
        raise IdentityError(f"cannot read the identity {path}: {error.strerror}") from None
    exposed = mode & 0o022 if path.resolve().is_relative_to(_SECRETS_DIR) else mode & 0o077
    if exposed:
        raise IdentityError(f"others can read or change the identity {path} (mode {mode:04o}); run: chmod 600 {path}")
    if len(data) == SEED_BYTES:
        return data
    try:
        return _from_hex(data.decode("ascii").strip(), str(path))
    except UnicodeDecodeError:
        raise IdentityError(f"{path} is not an identity seed; make a new one with: shoal init") from None


def _create(path: Path) -> None:
    """Write a new seed so that a crash leaves either none or a whole one, and nobody else ever reads it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a seed that another process has just made.
        os.link(new, path)
    except FileExistsError:
        return
    finally:
        new.unlink(missing_ok=True)
