"""Why a model cannot be loaded, what to do about it, and when it is tried again. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.errors import ModelLoadError


@dataclass(frozen=True)
class Trouble:
    """What keeps a model from being loaded until `retry_at`, on trio's clock, or until its file is another.

    `remedy` is what somebody can do.
    """

    reason: str
    remedy: str
    retry_at: float = math.inf

    def problem(self, name: str, now: float) -> ModelLoadError:
        """The error for those who ask for the model now."""
        again = None if self.retry_at == math.inf else max(1, math.ceil(self.retry_at - now))
        return ModelLoadError(f"{name} cannot be loaded: {self.reason}; {self.remedy}", retry_after=again)
