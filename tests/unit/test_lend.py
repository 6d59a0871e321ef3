"""How a job that a peer asked for is counted when the peer goes away."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from pydantic import ValidationError
from structlog.testing import capture_logs
from trio.testing import MockClock

from agent.config import LendConfig, LendTermsConfig, TimeoutsConfig
from agent.jobs.active import ActiveJobs
from agent.jobs.lend import Lender, lending_of
from agent.jobs.lending import Lending
from agent.jobs.neighbourhood import Neighbourhood
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState
from fleet.errors import PeerUnreachableError, RemoteError
from fleet.net.messages import Delta, InferRequest, ModelPresence
from fleet.net.rpc import IncomingCall
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


def refused(lending: Lending, times: int = 1) -> RemoteError | None:
    """How the last of so many jobs of one peer is refused; None where it runs."""
    here = SimpleNamespace(peer_id=LENDER, name="lender", local_state=lambda model: LocalState(LENDER, "lender", HELD))
    lender = Lender(cast(Neighbourhood, here), three_tokens, ActiveJobs(), TimeoutsConfig(), lending=lending)

    async def main() -> RemoteError | None:
        error = None
        for _ in range(times):
            try:
                await lender.handle(cast(IncomingCall, Call(gone=False)))
            except RemoteError as one:
                error = one
        return error

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_box_that_does_not_lend_tells_the_asker_to_go_elsewhere() -> None:
    error = refused(lending_of(LendConfig(enabled=False)))
    assert error is not None
    assert (error.remote_code, error.retryable) == ("overloaded", True)
    assert "retry_after" not in error.details


@pytest.mark.parametrize(("terms", "jobs"), [({"requests_per_minute": 2}, 3), ({"tokens_per_day": 6}, 3)])
def test_rates_and_budgets_of_the_configuration_hold(terms: dict[str, int], jobs: int) -> None:
    assert refused(lending_of(LendConfig(**terms)), jobs - 1) is None
    error = refused(lending_of(LendConfig(**terms)), jobs)
    assert error is not None
    assert error.remote_code == "overloaded"
    assert cast(int, error.details["retry_after"]) >= 1
    own = LendConfig(**terms, boxes={ASKER: LendTermsConfig()})
    assert refused(lending_of(own), 10 * jobs) is None


def test_quiet_hours_of_the_configuration_are_read() -> None:
    (hours,) = lending_of(LendConfig(quiet_hours=("22:30-06:05",))).quiet
    assert (hours.start, hours.end) == (time(22, 30), time(6, 5))


@pytest.mark.parametrize(
    "wrong", [{"quiet_hours": ["25:00-06:00"]}, {"max_share": 0}, {"max_share": 1.1}, {"boxes": {"jetson-1": {}}}]
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LendConfig.model_validate(wrong)
