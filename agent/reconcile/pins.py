"""The models that an operator asked for on this box, kept over restarts: what was pulled here stays here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from agent.engine.json_file import read_entries, write_entries
from agent.errors import AgentError
from fleet.blobs.manifest import is_blob_id

_MOST: Final = 1024


class PinsError(AgentError):
    """The disk does not take what was asked for; free space on it."""

    code = "store"


class Pins:
    """Content hashes, in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = {name: entry for name, entry in read_entries(file).items() if is_blob_id(name)}

    def __contains__(self, model_hash: str) -> bool:
        return model_hash in self._entries

    def all(self) -> frozenset[str]:
        """Every one."""
        return frozenset(self._entries)

    def add(self, model_hash: str) -> None:
        """Keep a model here from now on; it is on disk when this returns. Blocks. Raises PinsError."""
        if model_hash not in self._entries:
            if len(self._entries) >= _MOST:
                raise PinsError(f"this box keeps {_MOST} models already; remove some: shoal models rm")
            self._write({**self._entries, model_hash: {"at": time.time()}})

    def remove(self, model_hash: str) -> None:
        """Keep it no longer. Blocks. Raises PinsError."""
        if model_hash in self._entries:
            self._write({name: entry for name, entry in self._entries.items() if name != model_hash})

    def _write(self, entries: dict[str, dict[str, object]]) -> None:
        try:
            write_entries(self._file, entries)
        except OSError as error:
            raise PinsError(f"{self._file} cannot be written: {error.strerror or error}") from None
        self._entries = dict(entries)
