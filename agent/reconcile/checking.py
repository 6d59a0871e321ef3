"""Hashing a whole model again, for people to watch: which of its blocks are not what they were."""

from __future__ import annotations

import structlog
import trio

from agent.reconcile.transfers import Steps, Transfer
from fleet.blobs.held import Held
from fleet.errors import FleetError

log = structlog.get_logger("shoal.models")


async def check(held: Held, transfer: Transfer, steps: Steps) -> tuple[int, ...] | None:
    """The bad blocks of a blob, for which it is withdrawn from its store; None where that could not be found out.

    `transfer`, whose `look` is that of `steps`, is over when this returns, and has failed where it is cancelled.
    """

    def progress(done: int, total: int) -> None:
        steps.note(done, total)
        trio.from_thread.check_cancelled()

    try:
        bad = await trio.to_thread.run_sync(held.verify, progress)
    except FleetError as error:
        transfer.end("failed", error.message)
        return None
    finally:
        if transfer.state == "running":
            transfer.end("stopped", "the agent was stopped")
    if bad:
        log.error("model.damaged", model=transfer.name, hash=transfer.hash, blocks=len(bad))
    transfer.end("done", result={"bad_blocks": list(bad), "sound": not bad})
    return bad
