"""What people and boxes call a model: a content hash, or a name. Pure.

A content hash is `sha256:` and 64 hex digits. A name is compared in its canonical form: lower case, without folders
and without `.gguf`.
"""

from __future__ import annotations

import re
from typing import Final

_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SUFFIX: Final = ".gguf"


def is_hash(reference: str) -> bool:
    """Whether a reference is a content hash; everything else is a name."""
    return _HASH.fullmatch(reference) is not None


def canonical_name(name: str) -> str:
    """The form in which names are compared and shown: of a file name its stem, lower case.

    A name with characters that do not show is left as it is, so that it equals no other one.
    """
    if not name.isprintable():
        return name
    stem = name.rsplit("/", 1)[-1]
    lower = stem.lower() if stem.isascii() else "".join(map(_lower, stem))
    return lower.removesuffix(_SUFFIX)


def _lower(letter: str) -> str:
    """KELVIN SIGN is the one letter whose lower case is ASCII though itself is not, and some become two letters, with
    which a name could be longer than names may be: these stay what they are.
    """
    lower = letter.lower()
    return letter if ord(letter) == 0x212A or len(lower) != 1 else lower


def matches(reference: str, *, model_hash: str, name: str) -> bool:
    """Whether a reference means the model with this content hash and name."""
    if is_hash(reference):
        return reference == model_hash
    return canonical_name(reference) == canonical_name(name)
