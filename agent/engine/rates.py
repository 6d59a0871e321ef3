"""A figure measured again and again, the latest counting most. Pure."""

from __future__ import annotations

_WEIGHT = 0.3


class MovingRate:
    """An exponentially weighted mean of positive figures; None until there is one, and never 0."""

    def __init__(self) -> None:
        self.value: float | None = None

    def start_with(self, figure: float) -> None:
        """Take a first estimate, unless there is a better one."""
        if self.value is None:
            self.add(figure)

    def add(self, figure: float) -> None:
        """Take a measurement in; one that is not positive is no measurement."""
        if figure > 0:
            self.value = figure if self.value is None else self.value + _WEIGHT * (figure - self.value)
