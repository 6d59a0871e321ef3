"""Fetching a file over HTTPS into a `Download`: gone on with where it stopped, and every size bounded.

httpx does this, not the HTTP of the engines: here redirects, proxies of the environment and its certificates matter. It
is imported at the first use, as most boxes never need it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from agent.errors import BadRequestError, ModelSourceError
from agent.models_source_file import Download, Version
from agent.models_source_url import WebSource, follow, shown_url
from agent.version import VERSION
from fleet.blobs.errors import StorePausedError
from fleet.blobs.folder import paused
from fleet.blobs.store import BlobStore

if TYPE_CHECKING:
    import httpx

_REDIRECTS: Final = 8
#: Bytes that are collected before they are written.
_PIECE: Final = 1 << 20
#: The longest that a server's wish to be asked later is obeyed, in seconds.
_LONGEST_WAIT: Final = 60.0
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_UNMET: Final = re.compile(r"bytes \*/(\d{1,15})")
_DIGEST: Final = re.compile(r'"?([0-9a-f]{64})"?')
#: What another try may change.
_PASSING: Final = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class Terms:
    """How a file is fetched. `most` bytes; `silence` seconds without a byte end a try, and so many `tries` in a row
    that brought nothing end it all; between them there is a `pause`, which doubles. `trust` replaces the system's
    certificates."""

    most: int
    silence: float = 60.0
    tries: int = 6
    pause: float = 1.0
    trust: ssl.SSLContext | None = None


class PassingTroubleError(Exception):
    """A try failed in a way that the next one may not; `reason` fits behind the URL. `wait` is what the server asks
    for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class Fetch:
    """Fetches one source into one download. `report` is called with the bytes there and in all (None: unknown)."""

    def __init__(
        self,
        source: WebSource,
        file: Download,
        store: BlobStore,
        terms: Terms,
        report: Callable[[int, int | None], None],
    ) -> None:
        self._source = source
        self._file = file
        self._store = store
        self._terms = terms
        self._report = report

    async def run(self) -> None:
        """Fetch until it is whole. What the disk refuses is StorePausedError, or NoSpaceError before it begins.

        Raises ModelSourceError for what trying again does not help, and once too many tries brought nothing. What came
        is kept, also when this is cancelled, which takes as long as a write to the disk.
        """
        import httpx

        limits = httpx.Timeout(self._terms.silence, connect=15.0)
        # What the system trusts, as for the engines; httpx would bring a list of its own.
        trust = self._terms.trust
        if trust is None:
            trust = await trio.to_thread.run_sync(ssl.create_default_context)
        headers = {"User-Agent": f"shoal/{VERSION}", "Accept": "*/*", "Accept-Encoding": "identity"}
        async with httpx.AsyncClient(timeout=limits, verify=trust, headers=headers, max_redirects=0) as client:
            failed, pause = 0, self._terms.pause
            while True:
                before = self._file.size
                try:
                    return await self._try(client)
                except PassingTroubleError as trouble:
                    if self._file.size > before:
                        failed, pause = 0, self._terms.pause
                    failed += 1
                    if failed >= self._terms.tries:
                        raise ModelSourceError(
                            f"{self._source.shown} {trouble.reason}; what came is kept: try again later"
                        ) from None
                    # A server that is overloaded is not helped by asking at once.
                    await trio.sleep(max(pause, min(trouble.wait, _LONGEST_WAIT)))
                    pause *= 2

    async def _try(self, client: httpx.AsyncClient) -> None:
        import httpx

        url, said = self._source.url, Version()
        try:
            for _ in range(_REDIRECTS + 1):
                async with client.stream("GET", url, headers=self._conditions()) as response:
                    if self._source.hub and url == self._source.url:
                        said = _said_by_hub(response.headers)
                    if response.is_redirect:
                        url = follow(url, response.headers["location"])
                        continue
                    if await self._take(response, said):
                        return
                    raise PassingTroubleError("has another version of the file now")
        except httpx.TransportError as error:
            raise _trouble(error, url) from None
        except httpx.InvalidURL:
            raise ModelSourceError(f"{self._source.shown} redirects to something that is no URL") from None
        except BadRequestError as error:  # of a redirect
            raise ModelSourceError(error.message) from None
        raise ModelSourceError(f"{self._source.shown} redirects more than {_REDIRECTS} times")

    def _conditions(self) -> dict[str, str]:
        """Ask for the rest, if it is the rest of the same; else for all of it."""
        if self._file.size == 0 or not self._file.version.condition:
            return {}
        return {"Range": f"bytes={self._file.size}-", "If-Range": self._file.version.condition}

    async def _take(self, response: httpx.Response, said: Version) -> bool:
        """Take an answer in; False where what is here is of no use and all of it has to be asked for."""
        status, headers, file = response.status_code, response.headers, self._file
        if status == 416:
            unmet = _UNMET.fullmatch(headers.get("content-range", ""))
            if unmet is not None and int(unmet[1]) == file.size == file.version.size:
                return True
            await self._disk(file.begin, Version())
            return False
        if status not in (200, 206):
            _refuse_status(status, headers, self._source.shown)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ModelSourceError(f"{self._source.shown} is sent in a compressed form, though plain was asked for")
        if status == 206:
            part = _RANGE.fullmatch(headers.get("content-range", ""))
            total = file.version.size
            if part is None or int(part[1]) != file.size or (total is not None and int(part[3]) != total):
                await self._disk(file.begin, Version())
                return False
            size: int | None = int(part[3])
        else:
            size = _number(headers.get("content-length", ""))
            if size is None and headers.get("transfer-encoding", "").lower() != "chunked":
                raise ModelSourceError(f"{self._source.shown} does not say where the file ends")
            version = _version(headers, size, said)
            self._check_size(size)
            await self._disk(file.begin, version)
        self._check_size(size)
        await trio.to_thread.run_sync(self._store.check_room, 0 if size is None else size - file.size)
        await self._body(response, size)
        return True

    async def _body(self, response: httpx.Response, size: int | None) -> None:
        import httpx

        file = self._file
        waiting = bytearray()
        self._report(file.size, size)
        try:
            async for data in response.aiter_raw():
                waiting += data
                if size is not None and file.size + len(waiting) > size:
                    raise ModelSourceError(f"{self._source.shown} sends more than it said", keep=False)
                self._check_size(file.size + len(waiting))
                if len(waiting) >= _PIECE:
                    piece, waiting = bytes(waiting), bytearray()
                    await self._write(piece, size)
        except (trio.Cancelled, httpx.TransportError):
            with trio.CancelScope(shield=True), suppress(ModelSourceError, StorePausedError):
                await self._write(bytes(waiting), size)  # or it would have to be fetched again
            raise
        await self._write(bytes(waiting), size)
        if size is not None and file.size != size:
            raise PassingTroubleError("broke off before the file's end")

    async def _write(self, piece: bytes, size: int | None) -> None:
        if not piece:
            return
        first = self._file.size == 0
        await self._disk(self._file.write, piece)
        if first and not piece.startswith(b"GGUF"[: len(piece)]):
            raise ModelSourceError(
                f"{self._source.shown} is no model in GGUF form; name the file itself, not its page", keep=False
            )
        self._report(self._file.size, size)

    async def _disk(self, act: Callable[..., None], *values: object) -> None:
        try:
            await trio.to_thread.run_sync(act, *values)
        except OSError as error:
            raise paused(error, f"cannot write {self._file.path}") from None

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._terms.most:
            raise ModelSourceError(
                f"{self._source.shown} has more than {self._terms.most} bytes, the most that is taken", keep=False
            )


def _version(headers: Mapping[str, str], size: int | None, said: Version) -> Version:
    etag = headers.get("etag", "")[:256]
    if said.size is not None and size is not None and said.size != size:
        raise ModelSourceError(f"the hub says that the file has {said.size} bytes, and gives {size}")
    # A weak one names what means the same, not what is the same byte by byte (RFC 9110, 8.8.3).
    strong = etag if etag.startswith('"') and etag.isascii() and etag.isprintable() else ""
    modified = headers.get("last-modified", "")[:64]
    return Version(strong, modified if modified.isascii() and modified.isprintable() else "", size, said.sha256)


def _said_by_hub(headers: Mapping[str, str]) -> Version:
    digest = _DIGEST.fullmatch(headers.get("x-linked-etag", ""))
    return Version(sha256=digest[1] if digest else "", size=_number(headers.get("x-linked-size", "")))


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _refuse_status(status: int, headers: Mapping[str, str], shown: str) -> None:
    if status in _PASSING:
        raise PassingTroubleError(f"answers {status}", float(_number(headers.get("retry-after", "")) or 0))
    remedies = {
        401: "it asks for a key, which this does not send; download it yourself and add the file",
        403: "it may not be read from here; download it yourself and add the file",
        404: "there is no such file; check the name",
        410: "the file is gone",
    }
    raise ModelSourceError(f"{shown} answers {status}: {remedies.get(status, 'that is no file')}")


def _trouble(error: httpx.TransportError, url: str) -> Exception:
    """What a failure below HTTP means: a certificate that is wrong stays wrong."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return ModelSourceError(f"{shown_url(url)} has no valid certificate: {inner.verify_message}")
        inner = inner.__cause__ or inner.__context__
    return PassingTroubleError(f"cannot be fetched ({type(error).__name__})")
