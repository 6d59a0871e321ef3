"""The container's health check: whether the agent takes jobs. Exit code 0 if so, else 1 and why.

It asks /readyz, which needs no API key, at SHOAL_HTTP_LISTEN or else at port 8420 of loopback. Models that are named
have to be known too, here or at a box that can be borrowed from; that is asked with the first key of SHOAL_API_KEYS.

It runs every few seconds for as long as a box is on, and is most of what an idle one computes: nothing is imported that
is not needed where all is well, http.client and pathlib least of all (python3 -I -S leaves out more).
"""

import os
import socket
import sys

_PATIENCE = 4.0
_MOST = 1 << 20


class UnhealthyError(Exception):
    """What is wrong, in words."""


def _ask(path: str) -> tuple[int, bytes]:
    host, _, port = os.environ.get("SHOAL_HTTP_LISTEN", "127.0.0.1:8420").rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))
    # HTTP/1.0: the answer is neither in chunks nor followed by another.
    lines = [f"GET {path} HTTP/1.0", f"Host: {host}:{port}", *_key(), "", ""]
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as connection:
            connection.sendall("\r\n".join(lines).encode("latin-1", "replace"))
            answer = bytearray()
            while len(answer) < _MOST and (got := connection.recv(1 << 16)):
                answer += got
    except OSError as error:
        raise UnhealthyError(f"the agent does not answer at {host}:{port}: {error}") from None
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    try:
        return int(head.split(maxsplit=2)[1]), body
    except (IndexError, ValueError):
        raise UnhealthyError(f"what answers at {host}:{port} is no agent") from None


def _key() -> list[str]:
    try:
        with open(os.environ["SHOAL_API_KEYS"], encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - see above
            lines = [line.strip() for line in file]
    except (KeyError, OSError):
        return []
    keys = [line for line in lines if line and not line.startswith("#")]
    return [f"Authorization: Bearer {keys[0]}"] if keys else []


def _check(models: list[str]) -> None:
    status, body = _ask("/readyz")
    if status != 200:
        import json

        try:
            raise UnhealthyError("not ready: " + "; ".join(json.loads(body)["reasons"]))
        except (ValueError, KeyError, TypeError):
            raise UnhealthyError(f"not ready: HTTP {status}") from None
    if models:
        import json

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
