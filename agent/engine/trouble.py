"""Why a model cannot be loaded, what to do about it, and when it is tried again. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from agent.errors import ModelLoadError

#: Folders of an absolute path, as llama.cpp and the system may say them.
_FOLDERS: Final = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)+")


@dataclass(frozen=True)
class Trouble:
    """What keeps a model from being loaded until `retry_at`, on trio's clock, or until its file is another.

    `remedy` is what somebody can do. `folder` is where the file is.
    """

    reason: str
    remedy: str
    retry_at: float = math.inf
    folder: str = ""

    def problem(self, name: str, now: float) -> ModelLoadError:
        """The error for those who ask for the model now; it does not say where this box keeps its files."""
        again = None if self.retry_at == math.inf else max(1, math.ceil(self.retry_at - now))
        text = f"{self.reason}; {self.remedy}"
        if self.folder.strip("/"):
            text = text.replace(self.folder.rstrip("/") + "/", "")
        return ModelLoadError(f"{name} cannot be loaded: {_FOLDERS.sub('', text)}", retry_after=again)
