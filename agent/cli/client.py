"""Talking to a running agent over HTTP, believing it no more than necessary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    import httpx

DEFAULT_URL: Final = "http://127.0.0.1:8420"
#: Bytes of an answer that is read whole, and of one line of a stream.
MAX_BODY: Final = 16 * 1024 * 1024
#: Bytes of an answer that is lines of text: the document of the largest fleet.
MAX_TEXT: Final = 512 * 1024 * 1024
MAX_LINE: Final = 4 * 1024 * 1024
_MAX_KEY_FILE: Final = 64 * 1024
_CONNECT_LIMIT: Final = 5.0
_READ_LIMIT: Final = 15.0
#: A job may wait in a queue and for its model before its first token; the agent's own time-outs end it sooner.
_STREAM_READ_LIMIT: Final = 600.0

F = TypeVar("F", bound=Callable[..., Any])


class ClientError(Exception):
    """The agent could not be asked, or answered with an error; `code` is stable, `message` names the remedy."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})


def agent_options(function: F) -> F:
    """The options that say which agent to ask, and with which key."""
    url = click.option(
        "--url", envvar="SHOAL_URL", default=DEFAULT_URL, show_default=True, help="the agent to ask (env SHOAL_URL)"
    )
    key = click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="file with the API key; else env SHOAL_API_KEY, if the agent wants one",
    )
    return url(key(function))


class AgentClient:
    """A connection to one agent. Every method raises ClientError."""

    def __init__(self, url: str, api_key_file: Path | None = None) -> None:
        import httpx

        self.url = _checked_url(url)
        key = _api_key(api_key_file)
        # Proxies of the environment are for other hosts than this one; a TLS context takes 20 ms to make.
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_READ_LIMIT, connect=_CONNECT_LIMIT),
            trust_env=False,
            verify=self.url.startswith("https:"),
        )

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object; an answer of 503 that is no error, as from /readyz, counts as one."""
        with self._errors(), self._client.stream("GET", self.url + path) as response:
            value = self._read_object(response)
        if response.status_code not in (200, 503):
            raise self._bad_answer(f"with status {response.status_code}")
        return value

    def post_text(self, path: str, text: str) -> dict[str, Any]:
        """POST plain text and read a JSON object."""
        return self._post(path, text, "text/plain; charset=utf-8", _READ_LIMIT)

    def post(self, path: str, body: Mapping[str, Any], *, limit: float = _READ_LIMIT) -> dict[str, Any]:
        """POST a JSON object and read one; `limit` is how many seconds the agent may be silent before it answers."""
        return self._post(path, json.dumps(body), "application/json", limit)

    def _post(self, path: str, text: str, content_type: str, limit: float) -> dict[str, Any]:
        import httpx

        timeout = httpx.Timeout(limit, connect=_CONNECT_LIMIT)
        headers = {"content-type": content_type}
        request = self._client.stream("POST", self.url + path, content=text.encode(), headers=headers, timeout=timeout)
        with self._errors(), request as response:
            value = self._read_object(response)
        if response.status_code != 200:
            raise self._bad_answer(f"with status {response.status_code}")
        return value

    def get_lines(self, path: str) -> list[str]:
        """GET lines of text, at most MAX_TEXT bytes in all."""
        data = bytearray()
        with self._errors(), self._client.stream("GET", self.url + path) as response:
            if response.status_code != 200:
                self._read_object(response)
                raise self._bad_answer(f"with status {response.status_code}")
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MAX_TEXT:
                    raise self._bad_answer(f"with more than {MAX_TEXT} bytes")
        return data.decode("utf-8", "replace").splitlines()

    @contextmanager
    def lines(self, path: str, *, limit: float = _READ_LIMIT) -> Iterator[Iterator[bytes]]:
        """GET lines of text and read them as they come, each without its break and of at most MAX_LINE bytes.

        `limit` is how many seconds the agent may be silent.
        """
        import httpx

        timeout = httpx.Timeout(limit, connect=_CONNECT_LIMIT)
        with self._errors(), self._client.stream("GET", self.url + path, timeout=timeout) as response:
            if response.status_code != 200:
                self._read_object(response)
                raise self._bad_answer(f"with status {response.status_code}")
            yield _lines_of(response.iter_bytes())

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[EventStream]:
        """POST JSON and read server-sent events."""
        import httpx

        timeout = httpx.Timeout(_STREAM_READ_LIMIT, connect=_CONNECT_LIMIT)
        request = self._client.stream("POST", self.url + path, json=body, headers=dict(headers), timeout=timeout)
        with self._errors(), request as response:
            if response.status_code != 200:
                self._read_object(response)
                raise self._bad_answer(f"with status {response.status_code}")
            yield EventStream(response.headers, response.iter_bytes())

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Around what reads an answer's fields: whatever else lives at the URL must not look like a crash."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._bad_answer(f"({type(error).__name__}: {error})") from error

    def _read_object(self, response: httpx.Response) -> dict[str, Any]:
        """The whole body as a JSON object; an error object is raised."""
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MAX_BODY:
                raise self._bad_answer(f"with more than {MAX_BODY} bytes")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._bad_answer(f"with status {response.status_code}")
        _raise_error_object(value)
        return value

    def _bad_answer(self, how: str) -> ClientError:
        return ClientError("bad_answer", f"{self.url} answered as no agent of this version does, {how}; check --url")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise ClientError(
                "agent_unreachable", f"no agent answers at {self.url}; start one with: shoal run --config FILE"
            ) from None
        except httpx.TimeoutException:
            raise ClientError(
                "agent_unreachable", f"the agent at {self.url} did not answer in time; see its log"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError("agent_unreachable", f"the connection to {self.url} broke: {error}") from None


class EventStream:
    """The events of a streamed answer, read as they come. `headers` are the response's."""

    def __init__(self, headers: Mapping[str, str], pieces: Iterable[bytes]) -> None:
        self.headers = headers
        self._pieces = pieces

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each event; raises ClientError for an error event and for a stream that ends without [DONE]."""
        for line in _lines_of(self._pieces):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise ClientError("bad_answer", "the answer has an event that is not a JSON object")
            _raise_error_object(event)
            yield event
        raise ClientError("interrupted", "the answer broke off before its end")


def _lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, without their breaks; what comes after the last break is none."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE:
            raise ClientError("bad_answer", f"the answer has a line of more than {MAX_LINE} bytes")


def _raise_error_object(value: Mapping[str, Any]) -> None:
    error = value.get("error")
    if error is None:
        return
    if not isinstance(error, dict):
        error = {"message": str(error)}
    details = error.get("details")
    code, message = str(error.get("code") or "failed"), str(error.get("message") or "the agent gave no reason")
    raise ClientError(code, message, details if isinstance(details, dict) else None)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise ClientError("usage", f"{url!r} is not a URL such as {DEFAULT_URL}; see --url and SHOAL_URL")
    return url.rstrip("/")


def _api_key(path: Path | None) -> str:
    if path is None:
        source, text = "SHOAL_API_KEY", os.environ.get("SHOAL_API_KEY", "")
    else:
        source = str(path)
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_KEY_FILE).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ClientError("usage", f"cannot read the API key from {path}: {error}") from None
    key = next((line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")), "")
    if path is not None and not key:
        raise ClientError("usage", f"there is no API key in {path}")
    if not key.isascii() or not key.isprintable():
        raise ClientError("usage", f"the API key in {source} has characters that cannot be sent")
    return key
