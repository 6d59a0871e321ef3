"""When a neighbour is dialled again: soon after it went, patiently later, rarely when it refused us."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from fleet.errors import FleetError, PeerRefusedError, PeerUnreachableError
from fleet.net.dialler import Dialler, Neighbour, retry_delay


@given(st.integers(0, 1000), st.floats(0, 60), st.floats(0, 0.999))
def test_b24_a_box_that_just_went_is_dialled_at_least_every_1_25_s(failures: int, down: float, jitter: float) -> None:
    delay = retry_delay(failures, min(down, 59.9), refused=False, jitter=jitter)
    assert 0.1 <= delay <= 1.25


@given(st.integers(0, 10_000), st.floats(0, 1e9), st.floats(0, 0.999), st.booleans())
def test_the_delay_is_bounded(failures: int, down: float, jitter: float, refused: bool) -> None:
    assert 0.1 <= retry_delay(failures, down, refused=refused, jitter=jitter) <= 15 * 1.25


def test_patience_grows_with_absence() -> None:
    delays = [retry_delay(100, down, refused=False, jitter=0.5) for down in (1, 61, 120, 180, 3600)]
    assert delays == sorted(delays)
    assert delays[-1] == 15.0


class Network:
    """A scripted remote: each dial takes the next outcome; a number is how long the link then lives."""

    def __init__(self, outcomes: list[FleetError | float]) -> None:
        self.outcomes = outcomes
        self.dials: list[float] = []
        self.up = False

    async def connect(self, peer_id: str, addrs: tuple[str, ...], came_up) -> None:  # type: ignore[no-untyped-def]
        self.dials.append(trio.current_time())
        outcome = self.outcomes.pop(0) if self.outcomes else PeerUnreachableError("down")
        if isinstance(outcome, FleetError):
            raise outcome
        self.up = True
        came_up()
        await trio.sleep(outcome)
        self.up = False

    async def wait_gone(self, peer_id: str) -> None:
        while self.up:
            await trio.sleep(0.1)


def simulate(
    outcomes: list[FleetError | float], seconds: float, kick_at: float | None = None
) -> tuple[Network, Neighbour]:
    network = Network(outcomes)

    async def main() -> Neighbour:
        start = trio.current_time()
        network.dials = []
        dialler = Dialler(network.connect, lambda peer: network.up, network.wait_gone, random.Random(1))
        async with trio.open_nursery() as nursery:
            dialler.learn("p", ("/ip4/1.2.3.4/tcp/1",), nursery)
            if kick_at is not None:
                await trio.sleep(kick_at)
                dialler.kick()
                await trio.sleep(seconds - kick_at)
            else:
                await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
        network.dials = [at - start for at in network.dials]
        return dialler.neighbours()[0]

    return network, trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_neighbour_is_dialled_until_it_answers_and_then_left_alone() -> None:
    network, neighbour = simulate([PeerUnreachableError("x")] * 5 + [1000.0], 500)
    assert len(network.dials) == 6
    assert neighbour.state == "connected"
    assert neighbour.last_error == ""


def test_b24_a_neighbour_that_comes_back_is_found_within_two_seconds() -> None:
    network, neighbour = simulate([100.0, *[PeerUnreachableError("x")] * 20, 1000.0], 300)
    assert neighbour.state == "connected"
    gaps = [b - a for a, b in zip(network.dials[1:], network.dials[2:], strict=False)]
    assert max(gaps) <= 1.25


def test_b25_a_refusal_is_kept_and_dialled_rarely() -> None:
    network, neighbour = simulate([PeerRefusedError("add the key")] * 100, 60)
    assert neighbour.state == "refused"
    assert neighbour.last_error == "add the key"
    assert len(network.dials) <= 9


def test_a_kick_dials_at_once() -> None:
    network, _ = simulate([PeerRefusedError("no")] * 9, 8, kick_at=1.0)
    assert len(network.dials) == 2
    assert network.dials[1] == pytest.approx(1.0, abs=0.01)
