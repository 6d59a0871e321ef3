"""The container's health check: whether the agent takes jobs. Exit code 0 if so, else 1 and why.

It asks /readyz, which needs no API key, at SHOAL_HTTP_LISTEN or else at port 8420 of loopback. Models that are named
have to be known too, here or at a box that can be borrowed from; that is asked with the first key of SHOAL_API_KEYS.
"""

import http.client
import json
import os
import sys
from pathlib import Path

_PATIENCE = 4.0
_MOST = 1 << 20


class UnhealthyError(Exception):
    """What is wrong, in words."""


def _ask(path: str) -> tuple[int, bytes]:
    host, _, port = os.environ.get("SHOAL_HTTP_LISTEN", "127.0.0.1:8420").rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    connection = http.client.HTTPConnection(host, int(port), timeout=_PATIENCE)
    try:
        connection.request("GET", path, headers=_key())
        response = connection.getresponse()
        return response.status, response.read(_MOST)
    except OSError as error:
        raise UnhealthyError(f"the agent does not answer at {host}:{port}: {error}") from None
    finally:
        connection.close()


def _key() -> dict[str, str]:
    try:
        lines = [line.strip() for line in Path(os.environ["SHOAL_API_KEYS"]).read_text().splitlines()]
    except (KeyError, OSError):
        return {}
    keys = [line for line in lines if line and not line.startswith("#")]
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def _check(models: list[str]) -> None:
    status, body = _ask("/readyz")
    if status != 200:
        try:
            raise UnhealthyError("not ready: " + "; ".join(json.loads(body)["reasons"]))
        except (ValueError, KeyError, TypeError):
            raise UnhealthyError(f"not ready: HTTP {status}") from None
    if models:
        status, body = _ask("/v1/models")
        known = {model["id"] for model in json.loads(body)["data"]} if status == 200 else set()
        if missing := sorted(set(models) - known):
            raise UnhealthyError(f"no box is known yet that has {', '.join(missing)}")


def main() -> int:
    """Ask once; what is found goes to standard output, where `docker inspect` shows it."""
    try:
        _check(sys.argv[1:])
    except UnhealthyError as problem:
        print(problem)
        return 1
    print("healthy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
