"""Blocking work in a thread that can be cancelled, because somebody can make it return."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fleet.errors import FleetError


async def run_until_closed(
    run: Callable[[], None], close: Callable[[], None], limiter: trio.CapacityLimiter
) -> FleetError | None:
    """Run `run` in a thread to its end; gives the FleetError that it raised.

    When this is cancelled, `close` is called, and the thread is waited for: it must return soon after. `close` is
    called in any case, once.
    """
    failed: list[FleetError] = []

    def guarded() -> None:
        try:
            run()
        except FleetError as error:
            failed.append(error)

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.to_thread.run_sync(guarded, limiter=limiter)
        nursery.cancel_scope.cancel()
    return failed[0] if failed else None
