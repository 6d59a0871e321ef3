"""The peer gate decides by key alone, keeps account of whom it turned away, and cannot be filled up."""

from __future__ import annotations

from fleet.net.gate import Gate


def test_b25_nobody_is_admitted_who_is_not_allowed() -> None:
    gate = Gate({"friend"}.__contains__)
    assert gate.admit("friend", "inbound", "10.0.0.1:4")
    assert not gate.admit("stranger", "inbound", "10.0.0.2:4")
    assert not gate.admit("stranger", "outbound", "10.0.0.2:4")
    assert not gate.admit("", "inbound", "")


def test_the_list_is_asked_each_time_so_that_a_revocation_holds_at_once() -> None:
    allowed = {"friend"}
    gate = Gate(allowed.__contains__)
    assert gate.admit("friend", "inbound", "")
    allowed.clear()
    assert not gate.admit("friend", "inbound", "")
    allowed.add("friend")
    assert gate.admit("friend", "inbound", "")


def test_refusals_are_counted_by_direction_and_remembered_by_key_latest_last() -> None:
    gate = Gate(lambda peer_id: False)
    gate.admit("a", "inbound", "10.0.0.1:1")
    gate.admit("b", "outbound", "10.0.0.2:1")
    gate.admit("a", "inbound", "10.0.0.3:1")
    assert gate.counts == {"inbound": 2, "outbound": 1}
    assert [(r.peer_id, r.direction, r.remote_addr, r.count) for r in gate.refusals()] == [
        ("b", "outbound", "10.0.0.2:1", 1),
        ("a", "inbound", "10.0.0.3:1", 2),
    ]


def test_admitted_keys_leave_no_trace() -> None:
    gate = Gate(lambda peer_id: True)
    gate.admit("friend", "inbound", "10.0.0.1:1")
    assert not gate.counts
    assert gate.refusals() == ()


def test_a_stranger_with_ever_new_keys_fills_nothing() -> None:
    gate = Gate(lambda peer_id: False)
    for index in range(10_000):
        gate.admit(f"key-{index}", "inbound", "10.0.0.1:1")
    assert gate.counts["inbound"] == 10_000
    remembered = gate.refusals()
    assert len(remembered) == 64
    assert remembered[-1].peer_id == "key-9999"


def test_the_owner_hears_of_a_key_at_its_first_refusal_and_at_each_doubling() -> None:
    heard: list[tuple[str, str, str]] = []
    gate = Gate(lambda peer_id: False, lambda *refusal: heard.append(refusal))
    for _ in range(100):
        gate.admit("a", "inbound", "10.0.0.1:1")
    assert heard == [("a", "inbound", "10.0.0.1:1")] * 7
    gate.admit("b", "outbound", "")
    assert heard[-1] == ("b", "outbound", "")


def test_what_is_turned_away_without_a_key_is_counted_by_reason() -> None:
    gate = Gate(lambda peer_id: True)
    for _ in range(3):
        gate.note("half_open_dropped")
    gate.note("no_place_left")
    assert gate.counts == {"half_open_dropped": 3, "no_place_left": 1}
    assert gate.refusals() == ()
