"""A JSON object in a file that can be made again: what cannot be read is empty, and what is written is whole or old."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fleet.durable import make_private

_LIMIT: Final = 1024 * 1024


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """The objects in the object that a file of at most 1 MiB holds; empty where there is none that can be read."""
    try:
        with file.open("rb") as source:
            loaded = json.loads(source.read(_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(loaded, Mapping):
        return {}
    return {name: dict(entry) for name, entry in loaded.items() if isinstance(entry, Mapping)}


def write_entries(file: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Put entries in the place of those in a file, readable by its owner alone. Raises OSError."""
    make_private(file.parent)
    new = file.with_name(file.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as out:
        json.dump(entries, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
