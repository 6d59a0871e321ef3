"""From the vectors of a text's tokens to the one of the text, though they come in parts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from agent.errors import EngineError

Pooling = Literal["", "mean", "cls", "last"]


class Pooler:
    """The vectors of some texts that are read together, one part after another.

    `lengths` are the tokens of each text. An empty `pooling` is the mean, as is usual where a model says nothing.
    """

    def __init__(self, lengths: Sequence[int], pooling: Pooling, dimensions: int) -> None:
        self._texts = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        counts = {"cls": positions == 0, "last": positions == np.asarray(lengths)[self._texts] - 1}
        self._counts = counts.get(pooling, np.ones(len(positions), dtype=bool))
        self._sums = np.zeros((len(lengths), dimensions))

    def add(self, start: int, rows: np.ndarray) -> None:
        """The vectors of the tokens from `start` on, counted through all texts; each token once."""
        part = slice(start, start + len(rows))
        counts = self._counts[part]
        np.add.at(self._sums, self._texts[part][counts], rows[counts].astype(np.float64))

    def vectors(self) -> np.ndarray:
        """One vector of length 1 for each text. Raises EngineError for one without a direction."""
        return normalised(self._sums)


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows as vectors of length 1. Raises EngineError for one that has no direction."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not lengths.all():
        raise EngineError("the model gave a vector without a direction")
    return np.asarray(rows / lengths)
