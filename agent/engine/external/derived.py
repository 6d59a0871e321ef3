"""The id of a model whose file this box cannot read. Pure.

It has the form of a content hash and is the hash of bytes that begin with `_MARK`. A model file begins otherwise (GGUF
files with `GGUF`), so it is never the content hash of one. Changing what is hashed renames every external model.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from fleet import cbor

_MARK: Final = b"shoal external model 1\0"
_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def digest_in(value: object) -> str:
    """The 64 hex digits of a digest as Ollama writes it; empty for anything else."""
    found = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else ""


def id_of_digest(digest: str) -> str:
    """The id of a model whose manifest has this digest: the same wherever the same manifest is held.

    A manifest (OCI's, as Ollama uses it) names weights, template and parameters by their content hashes.
    """
    return _id("manifest", digest)


def id_at_place(box: str, url: str, model: str, weights: str) -> str:
    """The id of a model of which nobody knows more than its name: no other box has it.

    `box` is this box's PeerID; `weights` is what the server tells about them, so that others under the same name get
    another id.
    """
    return _id("place", box, url, model, weights)


def _id(*parts: str) -> str:
    return "sha256:" + hashlib.sha256(_MARK + cbor.encode(list(parts))).hexdigest()
