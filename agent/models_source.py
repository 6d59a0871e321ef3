"""Bringing a model in from outside: from a file of this machine, over HTTPS, or from a hub. Then it is a blob."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import trio

from agent.errors import ModelSourceError
from agent.models_source_download import Fetch, Terms
from agent.models_source_file import Download
from agent.models_source_url import LocalSource, Source, WebSource, parse_source
from fleet.blobs.folder import paused
from fleet.blobs.held import Held
from fleet.blobs.manifest import MAX_SIZE
from fleet.blobs.merkle import Algorithm
from fleet.blobs.store import BlobStore

__all__ = ["LocalSource", "Source", "SourceProgress", "Terms", "WebSource", "bring", "parse_source"]

_MAGIC: Final = b"GGUF"
#: Bytes between two reports of how far hashing is.
_TELL_EVERY: Final = 16 << 20


@dataclass(frozen=True)
class SourceProgress:
    """How far it is: `bytes` of `total` (None: the server does not say) are fetched, or hashed."""

    phase: Literal["fetching", "hashing"]
    bytes: int
    total: int | None


Report = Callable[[SourceProgress], None]


async def bring(
    source: Source,
    store: BlobStore,
    downloads: Path,
    *,
    report: Report = lambda progress: None,
    algorithm: Algorithm = "sha256",
    terms: Terms | None = None,
) -> Held:
    """Take a model into the store; gives the complete blob, also where it was there already.

    A download is kept in `downloads` until it is whole, and the next call with the same source goes on with it; that
    should be on the disk of the store, or it is copied. `report` is called in the trio thread.

    Raises ModelSourceError (a server or file that cannot be used; the message names the remedy), BadRequestError while
    the same is being fetched, NoSpaceError, StorePausedError, BlobFileError, BlobBusyError, MissingAlgorithmError.
    Cancelling it ends it within a block; what came of a download is kept.
    """
    if isinstance(source, LocalSource):
        await trio.to_thread.run_sync(_check_magic, source.path)
        return await _adopt(store, source.path, algorithm, report, move=False)
    terms = terms or Terms(most=MAX_SIZE)
    try:
        file = await trio.to_thread.run_sync(Download, downloads, source.url)
    except OSError as error:
        raise paused(error, f"cannot write into {downloads}") from None
    try:
        await Fetch(
            source, file, store, terms, lambda done, total: report(SourceProgress("fetching", done, total))
        ).run()
        if file.size == 0:
            raise ModelSourceError(f"{source.shown} is empty", keep=False)
        said = file.version.sha256
        before = store.held().keys()
        held = await _adopt(store, file.path, algorithm, report, move=True)
        if said and held.manifest.hex != said:
            if held.manifest.sha256 not in before:
                await trio.to_thread.run_sync(store.remove, held.manifest.sha256)
            raise ModelSourceError(
                f"what {source.shown} gave is not the file that the hub names by its hash; try again", keep=False
            )
        await trio.to_thread.run_sync(file.remove)
    except ModelSourceError as error:
        if not error.keep:
            await trio.to_thread.run_sync(file.remove)
        raise
    finally:
        with trio.CancelScope(shield=True):  # a sync of what came
            await trio.to_thread.run_sync(file.close)
    return held


async def _adopt(store: BlobStore, path: Path, algorithm: Algorithm, report: Report, *, move: bool) -> Held:
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        trio.from_thread.check_cancelled()
        if done - told >= _TELL_EVERY or done == total:
            told = done
            trio.from_thread.run_sync(report, SourceProgress("hashing", done, total))

    return await trio.to_thread.run_sync(lambda: store.adopt(path, algorithm=algorithm, progress=progress, move=move))


def _check_magic(path: Path) -> None:
    """Raises ModelSourceError for a file that is no model; what else may be wrong with it, `adopt` says."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not regular or os.pread(fd, len(_MAGIC), 0) != _MAGIC:
            raise ModelSourceError(f"{path} is no model in GGUF form")
    except OSError as error:
        raise ModelSourceError(f"cannot read {path}: {error.strerror or error}") from None
    finally:
        os.close(fd)
