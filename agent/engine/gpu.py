"""How many of a model's layers go to a GPU. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.engine.memory import MIB

#: The settings that are no number: every layer, and as many as fit.
ALL: Final = -1
AUTO: Final = -2


@dataclass(frozen=True)
class Device:
    """A GPU that llama.cpp can use; bytes of its memory that are free now, and that it has."""

    name: str
    free: int
    total: int

    @property
    def usable(self) -> int:
        """Bytes that a model may take: a part is left for what else draws and computes there."""
        return max(0, self.free - max(256 * MIB, self.total // 20))


def layers_for(
    setting: int, *, offload: bool, devices: Sequence[Device], blocks: int, weights: int, cache: int, compute: int
) -> int:
    """Layers to put on GPUs, of a model of `blocks` layers and one for the output.

    `offload` is whether llama.cpp was built for GPUs. With AUTO all layers go there where all of the model fits into
    the free memory, else as many as do, of equal size. None go there where the build or the box has no GPU, whatever
    the setting. `weights`, `cache` and `compute` are bytes of the whole model; any number of layers takes all of the
    last.
    """
    whole = blocks + 1
    if not offload or not devices:
        return 0
    if setting != AUTO:
        return whole if setting < 0 else min(setting, whole)
    room = sum(device.usable for device in devices) - compute * len(devices)
    if weights + cache <= room:
        return whole
    return max(0, min(blocks, room * whole // (weights + cache)))
