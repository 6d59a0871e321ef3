"""Blobs on the disk of one box: complete ones, and those of which blocks are missing.

The parts: `folder` (names and files), `description` (manifest and leaves), `journal`, `hashing`, `space`, `partial`,
`held`, `rot` (from complete to partial), `adopt` (a file from outside), `placing` (how the files come to be).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from fleet.blobs.adopt import take_in
from fleet.blobs.bitfield import Bitfield
from fleet.blobs.description import read_description
from fleet.blobs.errors import AlreadyHeldError, BlobBusyError, BlobError, BlobGoneError, StorePausedError
from fleet.blobs.folder import Folder, Kind, name_of, paused
from fleet.blobs.handle import SharedFd
from fleet.blobs.hashing import Progress
from fleet.blobs.held import Held
from fleet.blobs.journal import read_journal
from fleet.blobs.manifest import Manifest, check_leaf_list, is_blob_id
from fleet.blobs.merkle import Algorithm
from fleet.blobs.partial import Partial, PartialState
from fleet.blobs.placing import Known, delete, describe_anew, find_data, make_partial, open_partial, place
from fleet.blobs.rot import settle, withdraw
from fleet.blobs.space import check_room, reserve

__all__ = ["BlobStore", "PartialState", "Progress"]


class BlobStore:
    """The blobs in `folder`, for one process at a time. `keep_free` bytes of the disk are left to others.

    Blocking and thread-safe: what takes long holds up nothing but the blob it is about. `open` first; or use it as a
    context manager. A closed store raises BlobGoneError.
    """

    def __init__(self, folder: Path, *, keep_free: int) -> None:
        self.folder = folder
        self.keep_free = keep_free
        self._lock = threading.RLock()
        self._space = threading.Lock()
        self._disk: Folder | None = None
        self._held: dict[str, Held] = {}
        self._partials: dict[str, Partial] = {}
        self._known: dict[str, Known] = {}
        self._orphans: set[str] = set()
        #: Blobs that a thread is at work on without holding the lock.
        self._busy: set[str] = set()

    def __enter__(self) -> BlobStore:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Lock the folder and find what is there; nothing is hashed. Raises BlobBusyError while another store has the
        folder, StorePausedError where the disk fails."""
        with self._lock:
            if self._disk is not None:
                return
            self._disk = disk = Folder(self.folder)
            try:
                for blob, kinds in disk.list().items():
                    self._find(disk, blob, kinds)
            except OSError as error:
                self._disk = None
                self._let_go()
                disk.close()
                raise paused(error, f"cannot read {self.folder}") from None

    def close(self) -> None:
        """Make durable what was written, and let go of every file; what is used after that raises BlobGoneError."""
        with self._lock:
            disk, self._disk = self._disk, None
            partials = list(self._partials.values())
        for partial in partials:
            partial.close()
        with self._lock:
            self._let_go()
        if disk is not None:
            disk.close()

    # --- what is there ------------------------------------------------------------------------------------------------

    def held(self) -> Mapping[str, Held]:
        """The complete blobs, by id."""
        with self._lock:
            return dict(self._held)

    def partials(self) -> Mapping[str, PartialState]:
        """The blobs of which blocks are missing, by id, whether they were opened or not."""
        with self._lock:
            known = {
                blob: PartialState(found.manifest, found.claims.count, checked=False)
                for blob, found in self._known.items()
            }
            live = {
                blob: PartialState(found.manifest, found.count, checked=True) for blob, found in self._partials.items()
            }
            return known | live

    def partial(self, blob: str) -> Partial | None:
        """The blob that was begun or resumed, for reading what there is of it; None where there is none."""
        with self._lock:
            return self._partials.get(blob)

    def orphans(self) -> frozenset[str]:
        """Blobs of which the data are here and the description is not, or no longer sound. `begin` finds out what they
        are worth, `remove` deletes them."""
        with self._lock:
            return frozenset(self._orphans)

    def room(self) -> int:
        """How many bytes can be taken beside what is to stay free; negative where that is used up already."""
        disk = self._live()
        try:
            return disk.free() - self.keep_free
        except OSError as error:
            raise paused(error, f"cannot read {self.folder}") from None

    def check_room(self, size: int) -> None:
        """Raises NoSpaceError where there is no room for `size` bytes more, StorePausedError."""
        disk = self._live()
        try:
            check_room(disk, size, self.keep_free)
        except OSError as error:
            raise paused(error, f"cannot read {self.folder}") from None

    # --- what is fetched ----------------------------------------------------------------------------------------------

    def begin(self, manifest: Manifest, leaves: Sequence[bytes], progress: Progress | None = None) -> Partial:
        """Make a place for a blob and reserve the disk for it; go on with what there is of it, once it was hashed.

        Whoever begins a blob that is open already gets the same Partial; begun with another tree than before, the old
        one is closed and every block hashed by the new one. Raises AlreadyHeldError, NoSpaceError, BadManifestError
        (the leaves do not fold to the root), BlobBusyError, StorePausedError, and what `progress` raises.
        """
        sound = check_leaf_list(manifest, leaves)
        blob = manifest.sha256
        with self._claimed(blob) as disk:
            if blob in self._held:
                raise AlreadyHeldError(f"{blob} is complete here")
            live = self._partials.get(blob)
            if live is not None and live.manifest == manifest:
                return live
            if live is not None:
                live.close()
                self._note(blob, known=Known(live.manifest, live.leaves, live.have))
            known = self._known.get(blob)
            if not (known or blob in self._orphans) or not find_data(disk, manifest):
                made = make_partial(disk, manifest, sound, self)
            else:
                if known is None or known.manifest != manifest:
                    known = describe_anew(disk, manifest, sound)
                    self._note(blob, known=known)
                made = open_partial(disk, known, self, progress)
            self._note(blob, partial=made)
        return made

    def resume(self, progress: Progress | None = None) -> Mapping[str, Partial]:
        """Open every partial that an earlier process left, or in which rot was found: each block that its journal
        claims is hashed again, in threads. Only what is on disk counts then.

        What cannot be opened now (no room, a failing disk, a missing algorithm) stays as it was; `begin` says why.
        """
        with self._lock:
            self._live()
            todo = sorted(self._known.items())
        total = sum(known.claimed_bytes for _, known in todo)
        done = 0
        for blob, known in todo:
            told = None if progress is None else _within(progress, done, total)
            with contextlib.suppress(BlobError):
                self._take_up(blob, known, told)
            done += known.claimed_bytes
        with self._lock:
            return dict(self._partials)

    def reopen(self, blob: str, progress: Progress | None = None) -> Partial | None:
        """The same for one blob; None where there is no partial of it. Raises BlobBusyError, NoSpaceError,
        MissingAlgorithmError, StorePausedError, and what `progress` raises."""
        with self._lock:
            self._live()
            known = self._known.get(blob)
        if known is not None:
            self._take_up(blob, known, progress)
        return self.partial(blob)

    # --- what comes from outside, and what goes -----------------------------------------------------------------------

    def adopt(
        self,
        path: Path,
        *,
        algorithm: Algorithm = "sha256",
        progress: Progress | None = None,
        move: bool = False,
    ) -> Held:
        """Take a complete file in: as a clone or a hard link where the file system allows it, else as a copy.

        Reads it once, for its hash and its leaves. With `move` the original is removed in the end. One that is here
        already is not taken twice; a partial of it is done with. Raises BlobFileError, NoSpaceError, BlobBusyError,
        StorePausedError, and what `progress` raises.
        """
        disk = self._live()
        adopted = None
        try:
            adopted = take_in(disk, path, algorithm, self.reserve, progress)
            blob = adopted.manifest.sha256
            with self._claimed(blob):
                held = self._held.get(blob)
                if held is None:
                    place(disk, adopted)
                if move and path.parent.resolve() != self.folder.resolve():
                    path.unlink(missing_ok=True)  # before it is held: it would look changed after
                return held or self._hold(disk, adopted.manifest, adopted.leaves, checked=True)
        except OSError as error:
            raise paused(error, f"cannot take {path} into {self.folder}") from None
        finally:
            if adopted is not None:
                with contextlib.suppress(OSError, BlobGoneError):
                    disk.unlink(adopted.name)  # where it was not given its place

    def remove(self, blob: str) -> bool:
        """Delete a blob, complete or not, also one in use; whether there was one. Raises BlobBusyError and
        StorePausedError.

        The room it took is free once the last thread is done with it.
        """
        if not is_blob_id(blob):
            return False
        with self._claimed(blob) as disk:
            found = delete(disk, blob.removeprefix("sha256:"))
            self._note(blob)
            return found

    # --- what its partials and held blobs call ------------------------------------------------------------------------

    def reserve(self, fd: int, size: int) -> None:
        """See `fleet.blobs.space.reserve`; one at a time, so that two blobs do not get the same room."""
        with self._space:
            reserve(self._live(), fd, size, self.keep_free)

    def complete(self, partial: Partial) -> Path:
        """Give a partial whose whole was checked its place among the complete ones."""
        manifest = partial.manifest
        with self._claimed(manifest.sha256) as disk:
            if self._partials.get(manifest.sha256) is not partial:
                raise BlobGoneError("this blob was removed while it was finished")
            if not partial.is_file(disk.stat(name_of(manifest.hex, "part"))):
                self._note(manifest.sha256, known=Known(manifest, partial.leaves, Bitfield.full(manifest.blocks)))
                raise BlobGoneError("another file was put in the place of this blob; begin it again")
            disk.rename(name_of(manifest.hex, "part"), name_of(manifest.hex, "blob"))
            disk.sync()
            with contextlib.suppress(OSError):  # it claims everything, so it means nothing beside a complete file
                disk.unlink(name_of(manifest.hex, "journal"))
            return self._hold(disk, manifest, partial.leaves, checked=True).path

    def discard(self, partial: Partial) -> None:
        """Delete a partial whose manifest contradicts itself."""
        blob = partial.manifest.sha256
        with contextlib.suppress(BlobBusyError, StorePausedError), self._claimed(blob) as disk:
            if self._partials.get(blob) is partial:
                delete(disk, partial.manifest.hex)
                self._note(blob)

    def withdraw(self, held: Held, bad: tuple[int, ...]) -> None:
        """Make a complete blob a partial that lacks these blocks; nothing where that was done already."""
        manifest = held.manifest
        with self._lock:
            if self._held.get(manifest.sha256) is not held or manifest.sha256 in self._busy:
                return
            disk = self._live()
            if disk.stat(name_of(manifest.hex, "blob")) is None:  # somebody deleted it
                self._note(manifest.sha256)
                return
            claims = Bitfield.full(manifest.blocks)
            for index in bad:
                claims.clear(index)
            self._note(manifest.sha256, known=Known(manifest, held.leaves, claims))
            with contextlib.suppress(OSError):  # on a disk that is read-only; it is found again at the next start
                withdraw(disk, manifest, bad)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _live(self) -> Folder:
        disk = self._disk
        if disk is None:
            raise BlobGoneError("the store is not open")
        return disk

    @contextmanager
    def _claimed(self, blob: str) -> Iterator[Folder]:
        """Keep every other thread off a blob without holding the lock; what the disk refuses is StorePausedError.

        Raises BlobBusyError where another thread is at it.
        """
        with self._lock:
            disk = self._live()
            if blob in self._busy:
                raise BlobBusyError(f"another thread is at work on {blob}")
            self._busy.add(blob)
        try:
            yield disk
        except OSError as error:
            raise paused(error, f"cannot write {self.folder}") from None
        finally:
            with self._lock:
                self._busy.discard(blob)

    def _note(
        self, blob: str, *, held: Held | None = None, partial: Partial | None = None, known: Known | None = None
    ) -> None:
        """Of a blob there is this now and nothing else; what there was is closed. Raises BlobGoneError."""
        with self._lock:
            old_held, old_partial = self._held.pop(blob, None), self._partials.pop(blob, None)
            self._known.pop(blob, None)
            self._orphans.discard(blob)
            if old_held is not None:
                old_held.close()
            if old_partial is not None:
                old_partial.abandon()
            if self._disk is None:  # it was closed meanwhile
                if held is not None:
                    held.close()
                if partial is not None:
                    partial.close()
                raise BlobGoneError("the store was closed")
            if held is not None:
                self._held[blob] = held
            if partial is not None:
                self._partials[blob] = partial
            if known is not None:
                self._known[blob] = known

    def _hold(self, disk: Folder, manifest: Manifest, leaves: tuple[bytes, ...], *, checked: bool) -> Held:
        file = SharedFd(disk.open(name_of(manifest.hex, "blob")))
        held = Held(manifest, leaves, disk.file(manifest.hex, "blob"), file, self, checked=checked)
        self._note(manifest.sha256, held=held)
        return held

    def _let_go(self) -> None:
        for held in self._held.values():
            held.close()
        for partial in self._partials.values():
            partial.abandon()
        for kept in (self._held, self._partials, self._known):
            kept.clear()
        self._orphans.clear()

    def _take_up(self, blob: str, known: Known, progress: Progress | None) -> None:
        with self._claimed(blob) as disk:
            if self._known.get(blob) is not known:
                return
            if find_data(disk, known.manifest):
                self._note(blob, partial=open_partial(disk, known, self, progress))
            else:  # somebody deleted it
                delete(disk, known.manifest.hex)
                self._note(blob)

    def _find(self, disk: Folder, blob: str, kinds: set[Kind]) -> None:
        """Sort in what is on disk of one blob. Raises OSError."""
        if not kinds & {"blob", "part"}:
            for kind in kinds:  # left by a crash while it was begun or removed
                with contextlib.suppress(OSError):
                    disk.unlink(name_of(blob, kind))
            return
        try:
            found = read_description(disk, blob)
        except (OSError, BlobError):
            found = None
        if found is None:
            self._orphans.add(f"sha256:{blob}")
            return
        manifest, leaves = found
        with contextlib.suppress(OSError):  # a disk that is read-only can still be read from
            if "blob" in kinds and settle(disk, manifest):
                self._hold(disk, manifest, leaves, checked=False)
                return
        claims = None
        with contextlib.suppress(OSError):
            claims = read_journal(disk, manifest)
        if claims is None:
            claims = Bitfield.full(manifest.blocks)
        self._known[manifest.sha256] = Known(manifest, leaves, claims)


def _within(progress: Progress, done: int, total: int) -> Progress:
    return lambda step, _: progress(done + step, total)
