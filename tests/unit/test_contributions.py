"""The leaderboard of a fleet document that changes: accounts come, grow, and lose their authors."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import trio

from agent.contributions import Contributions
from agent.membership import Membership
from fleet.document.op import Op
from fleet.document.replica import Replica
from fleet.identity.keys import Identity, public_key_from_peer_id
from tests.harness import Fleet, peer_id_of, seed_of

BOXES = ("jetson", "till-1", "till-2")


def used(fleet: Fleet, consumer: str, provider: str, jobs: int, tokens: int, failures: int = 0) -> Op:
    path = f"used/{public_key_from_peer_id(peer_id_of(provider)).hex()}"
    body = {"jobs": jobs, "tokens": tokens, "failures": failures}
    return fleet.write("node", path, body, author=Identity.from_seed(seed_of(consumer)))


def membership_of(replica: Replica) -> Membership:
    membership = SimpleNamespace(
        replica=replica,
        identity=Identity.from_seed(seed_of("jetson")),
        subscribe=replica.subscribe,
        name_of=lambda peer_id: "",
    )
    return cast(Membership, membership)


def test_the_leaderboard_follows_the_document() -> None:
    fleet = Fleet()
    before: Sequence[Op] = [
        *fleet.certify(*map(peer_id_of, BOXES)),
        used(fleet, "till-1", "jetson", 10, 99_000),
        used(fleet, "jetson", "jetson", 1000, 1 << 39),
        used(fleet, "stranger", "jetson", 1000, 1 << 39),
    ]
    replica = Replica(fleet.genesis, before)
    contributions = Contributions(membership_of(replica))
    jetson, till = peer_id_of("jetson"), peer_id_of("till-1")

    async def main() -> None:
        (first,) = await contributions.leaderboard()
        assert (first["peer_id"], first["points"], first["tier"], first["consumers"]) == (jetson, 100.0, "silver", 1)
        assert first["self"] is True
        assert contributions.weight(jetson) > contributions.weight(till) == 1.0
        assert contributions.record(till) == 0.5

        more = used(fleet, "till-2", "till-1", 1, 900)
        again = used(fleet, "till-1", "jetson", 20, 198_000)
        outcomes = await replica.offer([again.raw, more.raw])
        assert [one.state for one in outcomes] == ["new", "new"]
        board = await contributions.leaderboard()
        assert [(one["rank"], one["points"], one["tier"]) for one in board] == [
            (1, 200.0, "silver"),
            (2, 1.0, "bronze"),
        ]

        await replica.offer([fleet.revoke(peer_id_of("till-1")).raw])
        assert await contributions.leaderboard() == []
        assert contributions.weight(jetson) == 1.0

    trio.run(main)


def test_a_key_that_is_none_and_a_box_without_a_fleet_have_no_score() -> None:
    membership = SimpleNamespace(replica=None, identity=Identity.from_seed(seed_of("x")), subscribe=lambda one: None)
    contributions = Contributions(cast(Membership, membership))
    for peer_id in ("no key", peer_id_of("jetson"), ""):
        assert (contributions.record(peer_id), contributions.weight(peer_id)) == (0.5, 1.0)
    assert trio.run(contributions.leaderboard) == []


def test_the_accounts_of_a_large_fleet_are_read_in_turns() -> None:
    fleet = Fleet()
    names = [f"box-{n}" for n in range(300)]
    ops = [*fleet.certify(*map(peer_id_of, [*names, "jetson"]))]
    ops += [used(fleet, name, "jetson", 1, 900) for name in names]
    replica = Replica(fleet.genesis, ops)
    contributions = Contributions(membership_of(replica))

    async def main() -> None:
        first = contributions.record(peer_id_of("jetson"))  # of the accounts that one turn has time for
        (box,) = await contributions.leaderboard()
        assert (box["points"], box["consumers"]) == (300.0, 300)
        assert contributions.record(peer_id_of("jetson")) > first > 0.5

    trio.run(main)
