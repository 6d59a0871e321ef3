"""A fleet of six that falls into halves: each goes on, and afterwards all are of one mind."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fleet.identity.keys import Identity, public_key_from_peer_id
from tests.containers.box import Box, boxes, eventually
from tests.containers.conftest import Timed
from tests.containers.faults import need_root, parted
from tests.harness import Fleet, peer_id_of, seed_of

NAMES = [f"half-{number}" for number in range(1, 7)]
CONTESTED = "somebody"


def standing(box: Box) -> str:
    """What a box makes of the key that both halves wrote about."""
    return str(box.shoal("firewall", "explain", peer_id_of(CONTESTED))["standing"])


def test_edits_on_both_sides_of_a_partition_become_one_view_and_the_deny_wins(network: Any, timed: Timed) -> None:
    need_root()
    fleet = Fleet()
    second = Identity.from_seed(seed_of("second admin"))
    with timed("six boxes, all connected"):
        started = boxes(network, NAMES, fleet=fleet)
        made = started.__enter__()
    try:
        left, right = made[:3], made[3:]
        made[0].offer(fleet.write("cert", second.public_key.hex(), "admin"))
        eventually(lambda: len({box.governance() for box in made}) == 1, "all know the second admin")
        with ExitStack() as partition:
            partition.enter_context(parted(left, right))
            eventually(
                lambda: all(box.connected() <= {other.name for other in left} for box in left), "the halves are apart"
            )
            subject = peer_id_of(CONTESTED)
            left[0].offer(fleet.firewall(subject, "allow"))
            right[0].offer(fleet.write("fw", public_key_from_peer_id(subject).hex(), ["deny", []], author=second))
            eventually(lambda: len({box.governance() for box in left}) == 1, "the left half is of one mind")
            eventually(lambda: len({box.governance() for box in right}) == 1, "the right half is of one mind")
            assert left[0].governance() != right[0].governance()
            assert "allowed" in standing(left[2])
            assert "denied" in standing(right[2])
            with timed("from the first rule that goes to one document on six boxes"):
                partition.close()
                eventually(lambda: len({box.governance() for box in made}) == 1, "all six are of one mind")
        assert {standing(box) for box in made} == {standing(right[2])}
        assert "denied" in standing(made[0])
    finally:
        started.__exit__(None, None, None)
