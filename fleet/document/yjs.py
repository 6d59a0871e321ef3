"""The few bytes of Yjs that are read and written here: varints, state vectors, an update that only deletes.

Yjs and y-protocols (lib0 encoding, version 1 of updates). What a client sends is read here, with limits, and goes no
further: no byte of it reaches pycrdt, which trusts the counts it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The largest integer that JavaScript, and so Yjs, holds exactly.
MAX_SAFE_INTEGER: Final = (1 << 53) - 1
#: Authors in a client's state vector; ours are a few.
MAX_VECTOR_ENTRIES: Final = 1024
_MAX_VARINT_BYTES: Final = 8


class YjsError(ValueError):
    """Bytes that are not what Yjs writes, or past a limit; the message says which."""


class StaleClientError(YjsError):
    """A client's copy comes from a history that is later than this one (the clock was set back), or is no copy of it.

    It cannot be repaired: the client has to start with an empty document.
    """


class Reader:
    """Reads lib0's encoding; raises YjsError at the end of the bytes and past a limit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self._at >= len(self._data)

    def integer(self) -> int:
        """An unsigned integer, 7 bits a byte, the lowest first; at most MAX_SAFE_INTEGER."""
        value = 0
        for place in range(_MAX_VARINT_BYTES):
            if self.at_end:
                raise YjsError("the message ends within a number")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if value > MAX_SAFE_INTEGER:
                    break
                return value
        raise YjsError(f"a number is larger than {MAX_SAFE_INTEGER}")

    def bytes(self) -> bytes:
        """A byte string with its length before it."""
        length = self.integer()
        if length > len(self._data) - self._at:
            raise YjsError("the message ends within a byte string")
        self._at += length
        return self._data[self._at - length : self._at]


def integer(value: int) -> bytes:
    """An unsigned integer as lib0 writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def byte_string(data: bytes) -> bytes:
    """A byte string with its length before it."""
    return integer(len(data)) + data


def read_vector(data: bytes) -> dict[int, int]:
    """A state vector: how many items of every author (client id) somebody has. Raises YjsError."""
    reader = Reader(data)
    count = reader.integer()
    if count > MAX_VECTOR_ENTRIES:
        raise YjsError(f"a state vector names at most {MAX_VECTOR_ENTRIES} authors")
    vector: dict[int, int] = {}
    for _ in range(count):
        client, clock = reader.integer(), reader.integer()
        if client in vector:
            raise YjsError("a state vector names an author twice")
        vector[client] = clock
    if not reader.at_end:
        raise YjsError("bytes after the end of a state vector")
    return vector


def vector(clocks: Mapping[int, int]) -> bytes:
    """A state vector as Yjs writes it."""
    entries = sorted(clocks.items(), reverse=True)
    return integer(len(entries)) + b"".join(integer(client) + integer(clock) for client, clock in entries)


def deletion(clocks: Mapping[int, int]) -> bytes:
    """An update that deletes the first so many items of each author, and says nothing else."""
    ranges = b"".join(
        integer(client) + integer(1) + integer(0) + integer(clock) for client, clock in sorted(clocks.items()) if clock
    )
    return integer(0) + integer(sum(1 for clock in clocks.values() if clock)) + ranges


def brings_items(update: bytes) -> bool:
    """Whether an update has items in it, and not only deletions. Raises YjsError where there is no update at all."""
    return Reader(update).integer() > 0
