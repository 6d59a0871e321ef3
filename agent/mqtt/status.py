"""What a box says of itself on its status topic, retained: who it is, what can be asked for there, its load. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

#: Models and pipelines that a status names.
MAX_NAMED: Final = 64


def status_payload(
    *,
    name: str,
    peer_id: str,
    version: str,
    state: str,
    models: Sequence[Mapping[str, object]],
    pipelines: Sequence[str],
    running: int,
    waiting: int,
) -> bytes:
    """The status as it is published. `models` have name, here and state."""
    body = {
        "v": 1,
        "name": name,
        "peer_id": peer_id,
        "version": version,
        "state": state,
        "models": list(models)[:MAX_NAMED],
        "pipelines": list(pipelines)[:MAX_NAMED],
        "jobs": {"running": running, "waiting": waiting},
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
