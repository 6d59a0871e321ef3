"""What two boxes say about blobs over their link, and the frames of the fast lane; limits come before anything else.

A box that wants a blob *follows* it at others: the call stays open for as long as it lasts, and its events say what is
there and whose turn it is (`fleet.blobs.slots`). What it wants itself it says in small calls. The blocks come over one
of two lanes: as calls of the link (`METHOD_GET`), or as frames of a socket of their own (`fleet.blobs.fast_lane`),
which `METHOD_LANE` arranges.

Bodies are CBOR maps, as those of `fleet.net.messages`: keys that are not known are ignored.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from fleet.blobs.bitfield import bytes_of
from fleet.blobs.manifest import MAX_BLOCKS
from fleet.blobs.merkle import HASH
from fleet.errors import MessageError
from fleet.net.messages import ModelHash

METHOD_LEAVES: Final = "blobs.leaves"
METHOD_FOLLOW: Final = "blobs.follow"
METHOD_TURN: Final = "blobs.turn"
METHOD_GET: Final = "blobs.get"
METHOD_LANE: Final = "blobs.lane"
METHOD_KEEP: Final = "blobs.keep"
SCOPE_BLOBS: Final = "blobs"

#: Leaves in one message: 512 KiB, for 16 GiB of blob.
LEAVES_A_PAGE: Final = 16 * 1024
#: Indexes in one event; more go into the next.
MAX_INDEXES: Final = 4096
#: Bytes of a block in one event: small enough for what else the link carries to come between.
PIECE: Final = 256 * 1024
#: Bytes of a certificate (an ephemeral one has about 300), of its fingerprint, of an offer's name and of its token.
MAX_CERTIFICATE: Final = 2048
FINGERPRINT: Final = 32
OFFER: Final = 16
TOKEN: Final = 32

_Index = Annotated[int, Field(ge=0, lt=MAX_BLOCKS, strict=True)]
_Indexes = Annotated[tuple[_Index, ...], FailFast()]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _OfBlob(_Wire):
    blob: ModelHash


class LeavesAsked(_OfBlob):
    """Asks for leaves from block `first` on (METHOD_LEAVES): a page of them comes, or as many as are left."""

    first: _Index = 0


class Leaves(_Wire):
    """A page of leaves, end to end."""

    leaves: bytes = Field(strict=True, min_length=HASH, max_length=LEAVES_A_PAGE * HASH)

    @model_validator(mode="after")
    def _whole(self) -> Leaves:
        if len(self.leaves) % HASH:
            raise ValueError(f"leaves of {HASH} bytes each, end to end")
        return self


class Follow(_OfBlob):
    """Follows a blob (METHOD_FOLLOW). `have` is the caller's bitfield, empty where it has nothing or does not say."""

    have: bytes = Field(default=b"", strict=True, max_length=bytes_of(MAX_BLOCKS))


class Shown(_Wire):
    """One event of a followed blob.

    `bits` is what can be had there from now on, in place of what was said before; `have` is what can be had besides;
    `turn` is for how many blocks the caller may ask now, in addition.
    """

    bits: bytes | None = Field(default=None, strict=True, max_length=bytes_of(MAX_BLOCKS))
    have: _Indexes = Field(default=(), max_length=MAX_INDEXES)
    turn: int = Field(default=0, ge=0, le=1 << 16)


class Turn(_OfBlob):
    """Says that the caller wants a turn at a blob that it follows, or that it has nothing to ask for (METHOD_TURN)."""

    want: bool = Field(strict=True)


class Get(_OfBlob):
    """Asks for one block (METHOD_GET), which comes in pieces."""

    index: _Index


class Piece(_Wire):
    """The next bytes of a block."""

    data: bytes = Field(strict=True, min_length=1, max_length=PIECE)


class LaneAsked(_OfBlob):
    """Asks for a fast lane (METHOD_LANE); `certificate` (DER) is the one that the caller will show there."""

    certificate: bytes = Field(strict=True, min_length=64, max_length=MAX_CERTIFICATE)


class LaneOffer(_Wire):
    """Where a fast lane waits for a few seconds, once, for this caller alone.

    `offer` names it (in clear, on the wire), `fingerprint` is the SHA-256 of the certificate (DER) that is shown there,
    `token` proves inside of TLS that it is the caller of this link who has come.
    """

    port: int = Field(ge=1, le=65535)
    offer: bytes = Field(strict=True, min_length=OFFER, max_length=OFFER)
    fingerprint: bytes = Field(strict=True, min_length=FINGERPRINT, max_length=FINGERPRINT)
    token: bytes = Field(strict=True, min_length=TOKEN, max_length=TOKEN)


class Keep(_OfBlob):
    """Asks whether a box keeps its copy, as the caller is about to delete its own (METHOD_KEEP)."""


class Kept(_Wire):
    """Whether it holds all of the blob and is not about to delete it."""

    keeps: bool = Field(strict=True)


# --- the frames of the fast lane --------------------------------------------------------------------------------------

#: Whoever fetches sends these: a word and a block's index.
ASK: Final = 1
CANCEL: Final = 2
ASKED: Final = struct.Struct(">BI")
#: Whoever gives sends these: a word, a block's index, and how many bytes of it follow (none of one that is refused).
BLOCK_FOLLOWS: Final = 1
REFUSED: Final = 2
ANSWER: Final = struct.Struct(">BII")
#: What the giving side says once a token was right.
WELCOME: Final = b"\x01"


def read_asks(data: bytes) -> list[tuple[int, int]]:
    """The (word, index) of frames end to end; a rest is the caller's. Raises MessageError for a word there is not."""
    whole = len(data) // ASKED.size * ASKED.size
    asks = [(int(word), int(index)) for word, index in ASKED.iter_unpack(data[:whole])]
    if any(word not in (ASK, CANCEL) for word, _ in asks):
        raise MessageError("no such word on the fast lane; this box may run an older version")
    return asks
