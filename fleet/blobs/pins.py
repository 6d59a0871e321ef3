"""TLS 1.3 between two boxes that have told each other their certificates before: ephemeral, pinned, no authorities.

A process makes one key and certificate for its lanes and never writes them to disk. Their fingerprints travel over the
authenticated link, so that nothing but the very certificate that was announced is accepted, in either direction.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import ssl
from dataclasses import dataclass
from typing import Final

from fleet.blobs.errors import BlobError

#: Boards without a clock live in 1970, and a certificate of one process needs no end: RFC 5280, 4.1.2.5.
_FROM: Final = datetime.datetime(1950, 1, 2, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class PinError(BlobError):
    """Whoever answers has another certificate than the one announced over the link; nothing was sent to it."""

    code = "wrong_pin"


@dataclass(frozen=True)
class LaneIdentity:
    """The key of this process's lanes. `certificate` is DER; `pem` has the key too and stays in memory."""

    certificate: bytes
    pem: bytes

    @property
    def fingerprint(self) -> bytes:
        """What peers are told: SHA-256 of the certificate, 32 bytes."""
        return hashlib.sha256(self.certificate).digest()


def new_identity() -> LaneIdentity:
    """A new Ed25519 key and a certificate of it that names nobody. Takes about a millisecond."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shoal lane")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    pem = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return LaneIdentity(
        certificate.public_bytes(forms.Encoding.DER), pem + certificate.public_bytes(forms.Encoding.PEM)
    )


def giving_context(identity: LaneIdentity, certificate: bytes) -> ssl.SSLContext:
    """The context of the side that listens, for the one caller that has announced `certificate` (DER).

    Raises PinError where that is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_up(context, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError):
        raise PinError("what was announced as a certificate is none") from None
    return context


def fetching_context(identity: LaneIdentity) -> ssl.SSLContext:
    """The context of the side that connects. It accepts any certificate: `check_pin` comes before anything is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_up(context, identity)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_pin(connection: ssl.SSLSocket, fingerprint: bytes) -> None:
    """Raise PinError unless the other side's certificate is the one with this fingerprint."""
    shown = connection.getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(shown).digest(), fingerprint):
        raise PinError("the box at the other end of the fast lane is not the one at the other end of the link")


def _set_up(context: ssl.SSLContext, identity: LaneIdentity) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # OpenSSL takes files alone: this one is in memory, and gone when it is closed.
    handle = os.memfd_create("shoal-lane", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(identity.pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
