"""What a running fetch counts, written by its threads and read by whoever watches."""

from __future__ import annotations

from fleet.blobs.manifest import Manifest
from fleet.blobs.progress import Progress


class Account:
    """The account of one fetch. Thread-safe."""

    def __init__(self, manifest: Manifest) -> None: ...

    def progress(self) -> Progress:
        """How far it is now."""
        raise NotImplementedError
