"""Reading a request body with a limit, and watching for a client that goes away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from starlette.types import Message, Receive, Scope

from agent.errors import BadRequestError, RequestTooLargeError

MAX_BODY: Final = 4 * 1024 * 1024
#: A client that is still sending past the limit is read this much further, so that it gets to see the answer.
_DRAIN: Final = 16 * 1024 * 1024
_BODY_TIMEOUT: Final = 30.0


class ClientGoneError(Exception):
    """The client closed its connection before it had an answer; there is nobody to tell."""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body, at most 4 MiB, within 30 s.

    Raises RequestTooLargeError naming the limit, BadRequestError when the client is too slow, ClientGoneError when
    it went away.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    body, size = bytearray(), 0
    too_large = declared.isdigit() and int(declared[:20]) > MAX_BODY
    with trio.move_on_after(_BODY_TIMEOUT) as patience:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            too_large = too_large or size > MAX_BODY
            if too_large:
                body.clear()
                if size > _DRAIN:
                    break
            else:
                body += chunk
            if not message.get("more_body", False):
                break
    if too_large:
        raise RequestTooLargeError(
            f"the body is past the limit of {MAX_BODY} bytes; send less at once", details={"limit_bytes": MAX_BODY}
        )
    if patience.cancelled_caught:
        raise BadRequestError(f"the body did not arrive within {_BODY_TIMEOUT:g} s")
    return bytes(body)


async def until_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Do `work`, but cancel it as soon as the client goes away; True if the client stayed."""
    stayed = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                message: Message = await receive()
                if message["type"] == "http.disconnect":
                    nursery.cancel_scope.cancel()
                    return

        nursery.start_soon(watch)
        await work()
        stayed = True
        nursery.cancel_scope.cancel()
    return stayed
