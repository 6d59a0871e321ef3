"""Bringing models in from a server that stops, changes, lies and redirects, and from files of this machine."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import ipaddress
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import BadRequestError, ModelSourceError
from agent.models_source import LocalSource, SourceProgress, Terms, WebSource, bring, parse_source
from fleet.blobs.errors import NoSpaceError
from fleet.blobs.held import Held
from fleet.blobs.store import BlobStore
from tests.blob_files import fast_folder

SIZE = 3 * (1 << 20) + 12345
MODEL = b"GGUF" + bytes(range(256)) * (SIZE // 256 + 1)
MODEL = MODEL[:SIZE]
SHA = hashlib.sha256(MODEL).hexdigest()
TERMS = Terms(most=1 << 30, silence=5.0, tries=3, pause=0.001)


@dataclass
class Site:
    """What the server gives at any path, and what it was asked."""

    body: bytes = MODEL
    etag: str = '"one"'
    #: Bytes after which each connection but the last of them is closed.
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    length: str | None = None
    ignore_ranges: bool = False
    sent: int = 0
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""
    pause_at: int | None = None
    paused: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.server.site  # type: ignore[attr-defined]
        self.close_connection = True
        site.asked.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        if self.path in site.redirects:
            return self._head(302, {"Location": site.redirects[self.path], "Content-Length": "0", **site.extra})
        if site.statuses:
            return self._head(site.statuses.pop(0), {"Content-Length": "0"})
        start, status, headers = 0, 200, {}
        wanted = self.headers["Range"]
        if wanted and not site.ignore_ranges and self.headers["If-Range"] == site.etag:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(site.body):
                return self._head(416, {"Content-Range": f"bytes */{len(site.body)}", "Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
        if site.etag:
            headers["ETag"] = site.etag
        data = site.body[start:]
        headers["Content-Length"] = str(len(data)) if site.length is None else site.length
        self._head(status, headers)
        if site.breaks:
            data = data[: site.breaks.pop(0)]
        if site.pause_at is not None:
            self.wfile.write(data[: site.pause_at])
            site.paused.wait(20)
            return None
        try:
            self.wfile.write(data)
            site.sent += len(data)
        except OSError:
            pass

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.handle_error = lambda request, client: None  # type: ignore[method-assign]
        yield found


@pytest.fixture
def site(server: http.server.ThreadingHTTPServer) -> Iterator[Site]:
    found = Site()
    server.site = found  # type: ignore[attr-defined]
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    yield found
    found.paused.set()
    server.shutdown()
    thread.join()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with fast_folder() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with BlobStore(tmp_path / "blobs", keep_free=0) as found:
        yield found


@pytest.fixture
def fetch(tmp_path: Path, store: BlobStore) -> Callable[..., Held]:
    def call(source: WebSource | LocalSource, terms: Terms = TERMS, report: Any = lambda _: None) -> Held:
        return trio.run(partial(bring, source, store, tmp_path / "downloads", report=report, terms=terms))

    return call


def test_a_model_behind_a_url_becomes_a_blob_and_nothing_else_is_left(
    site: Site, fetch: Callable[..., Held], tmp_path: Path
) -> None:
    told: list[SourceProgress] = []
    held = fetch(WebSource(f"{site.url}/m.gguf"), report=told.append)
    assert held.path.read_bytes() == MODEL
    assert held.manifest.hex == SHA
    assert not list((tmp_path / "downloads").iterdir())
    assert held.path.stat().st_nlink == 1
    assert {step.phase for step in told} == {"fetching", "hashing"}
    assert told[-1] == SourceProgress("hashing", SIZE, SIZE)


def test_a_connection_that_breaks_is_gone_on_with_and_nothing_is_sent_twice(
    site: Site, fetch: Callable[..., Held]
) -> None:
    site.breaks = [1 << 20, 1 << 20, 70_000]
    held = fetch(WebSource(f"{site.url}/m.gguf"))
    assert held.path.read_bytes() == MODEL
    assert site.sent == SIZE
    assert [asked[1] for asked in site.asked] == [
        None,
        f"bytes={1 << 20}-",
        f"bytes={2 << 20}-",
        f"bytes={(2 << 20) + 70_000}-",
    ]
    assert {asked[2] for asked in site.asked[1:]} == {'"one"'}


def test_what_was_cancelled_is_gone_on_with_by_the_next_call(
    site: Site, fetch: Callable[..., Held], store: BlobStore, tmp_path: Path
) -> None:
    site.pause_at = 2 << 20
    source = WebSource(f"{site.url}/m.gguf")

    async def cancelled() -> None:
        with trio.CancelScope() as scope:

            def report(step: SourceProgress) -> None:
                if step.bytes >= 1 << 20:
                    scope.cancel()

            await bring(source, store, tmp_path / "downloads", report=report, terms=TERMS)

    trio.run(cancelled)
    assert not store.held()
    site.pause_at = None
    assert fetch(source).path.read_bytes() == MODEL
    assert site.asked[-1][1] is not None
    assert site.sent <= SIZE - (1 << 20)


def test_another_version_behind_the_url_is_fetched_from_its_start(site: Site, fetch: Callable[..., Held]) -> None:
    site.breaks = [2 << 20]
    site.etag = '"old"'
    source = WebSource(f"{site.url}/m.gguf")
    with pytest.raises(ModelSourceError):
        fetch(source, Terms(most=1 << 30, tries=1))
    site.etag, site.body = '"new"', MODEL[:-1] + b"!"
    assert fetch(source).path.read_bytes() == site.body
    assert site.asked[-1][2] == '"old"'


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_validator_it_begins_again(site: Site, fetch: Callable[..., Held], etag: str) -> None:
    site.etag, site.breaks = etag, [1 << 20]
    assert fetch(WebSource(f"{site.url}/m.gguf")).path.read_bytes() == MODEL
    assert [asked[1] for asked in site.asked] == [None, None]


def test_a_server_that_does_not_know_ranges_is_read_from_the_start(site: Site, fetch: Callable[..., Held]) -> None:
    site.breaks, site.ignore_ranges = [1 << 20], True
    assert fetch(WebSource(f"{site.url}/m.gguf")).path.read_bytes() == MODEL


def test_one_that_is_overloaded_is_asked_again_and_one_that_says_no_is_not(
    site: Site, fetch: Callable[..., Held]
) -> None:
    site.statuses = [503, 429]
    assert fetch(WebSource(f"{site.url}/m.gguf")).manifest.hex == SHA
    site.statuses = [404, 200]
    with pytest.raises(ModelSourceError, match="404"):
        fetch(WebSource(f"{site.url}/other.gguf"))
    site.statuses = [500] * 10
    with pytest.raises(ModelSourceError, match="500"):
        fetch(WebSource(f"{site.url}/third.gguf"))
    assert len(site.statuses) == 10 - TERMS.tries


def test_redirects_are_followed_to_an_end(site: Site, fetch: Callable[..., Held]) -> None:
    site.redirects = {"/a": "/b", "/b": f"{site.url}/c", "/round": "/round", "/out": "http://models.example/x"}
    site.breaks = [1 << 20]
    assert fetch(WebSource(f"{site.url}/a")).path.read_bytes() == MODEL
    assert [asked[0] for asked in site.asked] == ["/a", "/b", "/c"] * 2
    with pytest.raises(ModelSourceError, match="redirects more than"):
        fetch(WebSource(f"{site.url}/round"))
    with pytest.raises(ModelSourceError, match="https"):
        fetch(WebSource(f"{site.url}/out"))


def test_what_is_no_model_too_large_or_without_an_end_is_refused_and_not_kept(
    site: Site, fetch: Callable[..., Held], tmp_path: Path
) -> None:
    site.body = b"<!doctype html>" + bytes(SIZE)
    with pytest.raises(ModelSourceError, match="GGUF"):
        fetch(WebSource(f"{site.url}/page"))
    site.body = MODEL
    with pytest.raises(ModelSourceError, match="more than"):
        fetch(WebSource(f"{site.url}/m.gguf"), Terms(most=SIZE - 1))
    site.body = b""
    with pytest.raises(ModelSourceError, match="empty"):
        fetch(WebSource(f"{site.url}/empty"))
    assert not list((tmp_path / "downloads").iterdir())


def test_there_must_be_room_before_it_begins(site: Site, tmp_path: Path) -> None:
    with (
        BlobStore(tmp_path / "full", keep_free=1 << 60) as store,
        pytest.raises(NoSpaceError) as caught,
    ):
        trio.run(partial(bring, WebSource(f"{site.url}/m"), store, tmp_path / "downloads", terms=TERMS))
    assert caught.value.missing > 1 << 59


def test_a_certificate_must_be_one_that_is_trusted_and_is_not_asked_for_twice(
    site: Site, fetch: Callable[..., Held], tmp_path: Path, server: http.server.ThreadingHTTPServer
) -> None:
    certificate, key = certificate_for("127.0.0.1", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    source = WebSource(site.url.replace("http:", "https:") + "/m.gguf")
    with pytest.raises(ModelSourceError, match="certificate"):
        fetch(source)
    assert not site.asked
    trust = ssl.create_default_context(cafile=str(certificate))
    site.breaks = [1 << 20]
    assert fetch(source, Terms(most=1 << 30, pause=0.001, trust=trust)).path.read_bytes() == MODEL


def certificate_for(host: str, folder: Path) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "certificate", folder / "key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


def test_a_hub_is_held_to_the_hash_and_size_that_it_names(
    site: Site, fetch: Callable[..., Held], store: BlobStore
) -> None:
    source = parse_source("hf:org/repo/m.gguf", hub=site.url)
    site.redirects = {"/org/repo/resolve/main/m.gguf": "/cdn"}
    site.extra = {"X-Linked-ETag": f'"{"0" * 64}"', "X-Linked-Size": str(SIZE)}
    with pytest.raises(ModelSourceError, match="hub"):
        fetch(source)
    assert not store.held()
    site.extra = {"X-Linked-ETag": f'"{SHA}"', "X-Linked-Size": str(SIZE + 1)}
    with pytest.raises(ModelSourceError, match="hub"):
        fetch(source)
    site.extra = {"X-Linked-ETag": f'"{SHA}"', "X-Linked-Size": str(SIZE)}
    assert fetch(source).manifest.hex == SHA


def test_what_a_power_cut_may_have_taken_is_fetched_again(
    site: Site, fetch: Callable[..., Held], tmp_path: Path
) -> None:
    source = WebSource(f"{site.url}/m.gguf")
    site.breaks = [2 << 20]
    with pytest.raises(ModelSourceError):
        fetch(source, Terms(most=1 << 30, tries=1))
    (data,) = (tmp_path / "downloads").glob("*.download")
    with data.open("r+b") as file:  # longer than what was made durable, and of nothing
        file.truncate(3 << 20)
    assert fetch(source).path.read_bytes() == MODEL
    assert site.asked[-1][1] == f"bytes={2 << 20}-"


@pytest.mark.parametrize(
    "state", [b"", b"{", b"[]", b'{"durable": -1, "version": {}}', b'{"durable": 1e9, "version": 3}']
)
def test_a_state_that_makes_no_sense_begins_again(
    site: Site, fetch: Callable[..., Held], tmp_path: Path, state: bytes
) -> None:
    source = WebSource(f"{site.url}/m.gguf")
    site.breaks = [2 << 20]
    with pytest.raises(ModelSourceError):
        fetch(source, Terms(most=1 << 30, tries=1))
    (found,) = (tmp_path / "downloads").glob("*.json")
    found.write_bytes(state)
    assert fetch(source).path.read_bytes() == MODEL
    assert site.asked[-1][1] is None


def test_the_same_source_is_fetched_by_one_at_a_time(site: Site, store: BlobStore, tmp_path: Path) -> None:
    source = WebSource(f"{site.url}/m.gguf")
    site.pause_at = 2 << 20

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(
                partial(bring, source, store, tmp_path / "d", report=lambda _: started.set(), terms=TERMS)
            )
            await started.wait()
            with pytest.raises(BadRequestError, match="already"):
                await bring(source, store, tmp_path / "d", terms=TERMS)
            nursery.cancel_scope.cancel()

    trio.run(both)


def test_a_local_file_is_taken_in_and_stays_where_it_is(fetch: Callable[..., Held], tmp_path: Path) -> None:
    file, link = tmp_path / "m.gguf", tmp_path / "link.gguf"
    file.write_bytes(MODEL)
    link.symlink_to(file)
    assert fetch(LocalSource(link)).path.read_bytes() == MODEL
    assert file.read_bytes() == MODEL
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no model")
    for name in ("pipe", "text", "missing", "."):
        with pytest.raises(ModelSourceError):
            fetch(LocalSource(tmp_path / name))
