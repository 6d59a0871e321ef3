"""Which of the connections in their handshake goes when there are too many: never one that a member needs."""

from __future__ import annotations

from fleet.net.half_open import MAX_HALF_OPEN, MAX_HALF_OPEN_PER_ADDRESS, HalfOpen, Stage, network_of


class Door:
    """A HalfOpen that remembers what it dropped."""

    def __init__(self) -> None:
        self.half_open = HalfOpen()
        self.dropped: list[str] = []

    def enter(self, key: str, host: str = "10.0.0.1") -> Stage | None:
        return self.half_open.enter(key, host, lambda: self.dropped.append(key))


def test_the_oldest_of_an_address_goes_when_it_has_its_share() -> None:
    door = Door()
    for index in range(MAX_HALF_OPEN_PER_ADDRESS + 3):
        door.enter(f"k{index}")
    assert door.dropped == ["k0", "k1", "k2"]
    assert len(door.half_open) == MAX_HALF_OPEN_PER_ADDRESS
    assert door.enter("other", "10.0.0.2") is None


def test_one_that_speaks_outlives_any_number_that_are_silent() -> None:
    door = Door()
    door.enter("member")
    door.half_open.show("member", Stage.SPEAKING)
    for index in range(10_000):
        door.enter(f"k{index}")
    assert "member" not in door.dropped


def test_one_that_was_refused_goes_first_and_is_told_apart() -> None:
    door = Door()
    for index in range(MAX_HALF_OPEN_PER_ADDRESS):
        door.enter(f"k{index}")
    door.half_open.show("k7", Stage.REFUSED)
    assert door.enter("next") is Stage.REFUSED
    assert door.enter("after") is Stage.SILENT
    assert door.dropped == ["k7", "k0"]


def test_when_all_places_are_taken_the_most_crowded_address_pays() -> None:
    door = Door()
    door.enter("member", "192.168.1.9")
    hosts = MAX_HALF_OPEN // MAX_HALF_OPEN_PER_ADDRESS
    for host in range(hosts):
        for index in range(MAX_HALF_OPEN_PER_ADDRESS):
            door.enter(f"{host}-{index}", f"10.0.0.{host}")
    assert len(door.half_open) == MAX_HALF_OPEN
    for index in range(50):
        door.enter(f"new-{index}", f"10.1.0.{index}")
    assert len(door.half_open) == MAX_HALF_OPEN
    assert "member" not in door.dropped


def test_leaving_frees_the_place_and_nobody_is_dropped_twice() -> None:
    door = Door()
    for index in range(MAX_HALF_OPEN_PER_ADDRESS):
        door.enter(f"k{index}")
    door.half_open.leave("k3")
    door.half_open.leave("k3")
    assert door.enter("next") is None
    door.enter("after")
    door.half_open.leave("k0")
    door.half_open.show("k0", Stage.SPEAKING)
    assert door.dropped == ["k0"]


def test_addresses_that_anyone_may_choose_from_count_as_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8:0:0:ffff::9") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("") == ""
