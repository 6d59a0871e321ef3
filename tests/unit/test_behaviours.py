"""The table of promises: it notices one that has no test, and one that does not hold."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.behaviours import ROOT, numbers_of, promises, table, tallies


def test_a_test_names_its_promises() -> None:
    assert numbers_of("test_b18_b33_a_frozen_provider[1]") == [18, 33]
    assert numbers_of("test_b5") == [5]
    assert numbers_of("test_batching") == numbers_of("test_a_b5_c") == []


def test_all_promises_are_read() -> None:
    assert list(promises((ROOT / "docs" / "behaviours.md").read_text())) == list(range(1, 47))


def test_the_table_says_what_holds_what_does_not_and_what_nobody_looked_at() -> None:
    report = ElementTree.fromstring(
        '<testsuite><testcase name="test_b1_b2_x"/><testcase name="test_b2_y"><failure/></testcase>'
        '<testcase name="test_b3_z"><skipped/></testcase><testcase name="test_other"><failure/></testcase></testsuite>'
    )
    lines = table({1: "one", 2: "two", 3: "three", 4: "four"}, tallies(report)).splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["holds", "FAILED", "not", "NO"]
    assert [line.split()[-2] for line in lines] == ["1", "2", "1", "0"]
