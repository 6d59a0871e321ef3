"""When a model is put aside after crashes, for how long, and what lifts it."""

from __future__ import annotations

from agent.engine.quarantine import COOL_DOWN, WINDOW, Quarantine, remedy_for


def test_the_second_crash_within_the_window_puts_a_model_aside() -> None:
    kept = Quarantine()
    assert not kept.note("a", 0.0)
    assert kept.until("a", 0.0) is None
    assert kept.note("a", WINDOW)
    assert kept.until("a", WINDOW) == WINDOW + COOL_DOWN
    assert kept.until("b", WINDOW) is None
    assert kept.until("a", WINDOW + COOL_DOWN) is None


def test_crashes_that_are_far_apart_do_not_add_up() -> None:
    kept = Quarantine()
    assert not any(kept.note("a", number * (WINDOW + 1)) for number in range(10))


def test_after_the_cool_down_one_more_crash_within_the_window_is_enough_for_nothing() -> None:
    kept = Quarantine()
    kept.note("a", 0.0)
    kept.note("a", 1.0)
    assert not kept.note("a", 1.0 + COOL_DOWN + 1.0)
    assert kept.note("a", 1.0 + COOL_DOWN + 2.0)


def test_it_can_be_lifted() -> None:
    kept = Quarantine()
    kept.note("a", 0.0)
    kept.note("a", 0.0)
    kept.lift("a")
    assert kept.until("a", 0.0) is None
    assert not kept.note("a", 0.0)


def test_only_so_many_models_are_remembered() -> None:
    kept = Quarantine()
    for number in range(300):
        kept.note(str(number), 0.0)
    assert kept.note("299", 0.0)
    assert not kept.note("0", 0.0)


def test_what_to_do_about_it_begins_with_the_command_that_lifts_it() -> None:
    assert remedy_for("smol", "a.gguf") == (
        "try it again with: shoal models retry smol, replace a.gguf, or wait: it is tried again after 10 minutes"
    )
    assert "retry 'a model'," in remedy_for("a model", "a.gguf")
