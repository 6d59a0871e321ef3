"""What this box is made of, as far as the fleet document tells it besides what `psutil` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_LIMIT: Final = 4096
_MAX_NAME: Final = 64


def gpu_name(root: Path = Path("/")) -> str:
    """The name of the first NVIDIA GPU, of a card or of a Jetson's own; empty where there is none that can be seen.

    Read from what the kernel shows of its drivers, so that no GPU library is loaded into the agent.
    """
    for entry in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _text(entry).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model" and value.strip():
                return value.strip()[:_MAX_NAME]
    board = _text(root / "proc/device-tree/model").strip("\0 \n")
    return board[:_MAX_NAME] if "Jetson" in board and board.isprintable() else ""


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""
