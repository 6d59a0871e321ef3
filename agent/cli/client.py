"""Talking to a running agent over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    import httpx

DEFAULT_URL: Final = "http://127.0.0.1:8420"
_MAX_LINE: Final = 4 * 1024 * 1024

F = TypeVar("F", bound=Callable[..., Any])


class ClientError(Exception):
    """The agent could not be asked, or answered with an error; `code` is stable."""

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

        headers = {}
        key = _api_key(api_key_file)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(10.0, read=120.0), trust_env=False)

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object."""
        with self._errors():
            return self._checked(self._client.get(self.url + path))

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[dict[str, Any], Any]:
        """POST JSON; the JSON answer and the response headers."""
        with self._errors():
            response = self._client.post(self.url + path, json=body, headers=dict(headers))
            return self._checked(response), response.headers

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[EventStream]:
        """POST JSON and read server-sent events."""
        with self._errors(), self._client.stream("POST", self.url + path, json=body, headers=dict(headers)) as response:
            if response.status_code != 200:
                response.read()
                self._checked(response)
            yield EventStream(response)

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        try:
            value = response.json()
        except ValueError:
            value = None
        if response.status_code in (200, 503) and isinstance(value, dict) and "error" not in value:
            return value
        if isinstance(value, dict) and isinstance(value.get("error"), dict):
            error = value["error"]
            raise ClientError(str(error.get("code")), str(error.get("message")), error.get("details"))
        raise ClientError("bad_answer", f"{self.url} answered {response.status_code} and not as an agent does")

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
            raise ClientError("agent_unreachable", f"the agent at {self.url} did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError("agent_unreachable", f"the connection to {self.url} failed: {error}") from None


class EventStream:
    """The events of a streamed answer."""

    def __init__(self, response: httpx.Response) -> None:
        self.headers = response.headers
        self.done = False
        self._response = response

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each event; raises ClientError for an error event and for a stream that ends without [DONE]."""
        for line in self._response.iter_lines():
            if not line.startswith("data:") or len(line) > _MAX_LINE:
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                self.done = True
                return
            event = json.loads(data)
            if "error" in event:
                error = event["error"]
                raise ClientError(str(error.get("code")), str(error.get("message")), error.get("details"))
            yield event
        raise ClientError("interrupted", "the answer broke off")


def _api_key(path: Path | None) -> str:
    if path is None:
        return os.environ.get("SHOAL_API_KEY", "").strip()
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError("config", f"cannot read the API key from {path}: {error}") from None
    return next((line for line in lines if line and not line.startswith("#")), "")
