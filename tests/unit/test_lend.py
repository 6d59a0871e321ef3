"""How a job that a peer asked for is counted when the peer goes away."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from structlog.testing import capture_logs

from agent.config import TimeoutsConfig
from agent.jobs.active import ActiveJobs
from agent.jobs.lend import Lender
from agent.jobs.neighbourhood import Neighbourhood
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState
from fleet.errors import PeerUnreachableError
from fleet.net.messages import Delta, InferRequest, ModelPresence
from tests.harness import peer_id_of

LENDER, ASKER = peer_id_of("lender"), peer_id_of("asker")
HELD = ModelPresence(name="m", hash="sha256:" + "0" * 64, state="loaded", context_tokens=100)


class Call:
    """A call over a link that is cut after the first event."""

    peer_id = ASKER

    def __init__(self, gone: bool) -> None:
        self.body: object = InferRequest(job="j1", kind="completion", model="m", prompt="x", route=(ASKER,)).model_dump(
            mode="json"
        )
        self._gone = gone
        self.sent = 0

    async def send(self, event: Mapping[str, object]) -> None:
        self.sent += 1
        if self._gone and self.sent > 1:
            raise PeerUnreachableError("the link to the peer is over")


async def three_tokens(model: str, request: InferRequest, emit: EngineEmit) -> None:
    for _ in range(3):
        await emit(Delta(text="a"))


@pytest.mark.parametrize(("gone", "outcome", "tokens"), [(True, "cancelled", 2), (False, "ok", 3)])
def test_an_asker_that_is_gone_ends_the_job_as_cancelled(gone: bool, outcome: str, tokens: int) -> None:
    here = SimpleNamespace(peer_id=LENDER, name="lender", local_state=lambda model: LocalState(LENDER, "lender", HELD))
    lender = Lender(cast(Neighbourhood, here), three_tokens, ActiveJobs(), TimeoutsConfig())
    with capture_logs() as logs:
        try:
            trio.run(lender.handle, Call(gone))
        except PeerUnreachableError:
            assert gone
    (end,) = [line for line in logs if line["event"] == "job.lent_end"]
    assert (end["outcome"], end["tokens"]) == (outcome, tokens)
