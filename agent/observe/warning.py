"""One health problem of a box, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Warning:
    """One problem. `remedy` is what a person can do now."""

    code: str
    severity: Severity
    title: str
    text: str
    remedy: str
