"""Which models are not loaded for a while because their process crashed again and again. Pure.

The clock is an argument. Models go by content hash: the same bytes under another path crash the same way, and a
replaced file is another model.
"""

from __future__ import annotations

import shlex
from collections import deque
from typing import Final

#: This many crashes within WINDOW seconds put a model aside for COOL_DOWN seconds.
CRASHES: Final = 2
WINDOW: Final = 600.0
COOL_DOWN: Final = 600.0
#: Hashes that are remembered; the one whose last crash is longest ago is forgotten first.
_REMEMBERED: Final = 256


class Quarantine:
    """Crashes by content hash."""

    def __init__(self) -> None:
        self._crashes: dict[str, deque[float]] = {}

    def note(self, model_hash: str, now: float) -> bool:
        """A process of the model crashed by its own load or jobs; True where the model is put aside by that."""
        crashes = self._crashes.pop(model_hash, deque(maxlen=CRASHES))
        crashes.append(now)
        self._crashes[model_hash] = crashes
        if len(self._crashes) > _REMEMBERED:
            del self._crashes[next(iter(self._crashes))]
        return self.until(model_hash, now) is not None

    def until(self, model_hash: str, now: float) -> float | None:
        """When the model may be loaded again; None where it may be now."""
        crashes = self._crashes.get(model_hash)
        if crashes is None or len(crashes) < CRASHES or crashes[-1] - crashes[0] > WINDOW:
            return None
        end = crashes[-1] + COOL_DOWN
        return end if now < end else None

    def lift(self, model_hash: str) -> None:
        """Forget the crashes of a model; it may be loaded at once."""
        self._crashes.pop(model_hash, None)


def remedy_for(name: str, file: str) -> str:
    """What somebody can do about a model that is put aside; `file` is the name of its file."""
    again = f"it is tried again after {COOL_DOWN / 60:.0f} minutes"
    return f"try it again with: shoal models retry {shlex.quote(name)}, replace {file}, or wait: {again}"
