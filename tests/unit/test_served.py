"""What an answer says of the model that ran where it is another than was asked for."""

from __future__ import annotations

from dataclasses import replace

from agent.http.served import MAX_DIFFERS, served_facts, served_headers
from agent.jobs.job import Routed, Substituted

SERVED = Routed("id", "jetson-1", False, "smollm2-135m-instruct.q8_0", "sha256:" + "0" * 64, 1, ("jetson-1=served",))
OTHER = Substituted("till-ü", "smollm2-135m-instruct.q8_0", ("quantisation Q8_0 instead of Q4_1", "size 135M"))


def test_b38_the_headers_and_the_body_say_what_ran_and_in_what_it_differs() -> None:
    told = replace(SERVED, substituted=OTHER)
    headers = dict(served_headers(told))
    assert headers["x-shoal-model"] == "smollm2-135m-instruct.q8_0"
    assert headers["x-shoal-substituted"] == "quantisation Q8_0 instead of Q4_1; size 135M"
    assert served_facts(told)["substituted"] == {
        "asked": "till-ü",
        "ran": "smollm2-135m-instruct.q8_0",
        "differs": ["quantisation Q8_0 instead of Q4_1", "size 135M"],
    }


def test_of_the_model_that_was_asked_for_nothing_is_said() -> None:
    assert "x-shoal-substituted" not in dict(served_headers(SERVED))
    assert "substituted" not in served_facts(SERVED)


def test_what_a_box_calls_its_model_cannot_break_the_header() -> None:
    hostile = Substituted("m", "m\r\n", ("x\r\nx-evil: 1", "ö" * 4000))
    text = dict(served_headers(replace(SERVED, substituted=hostile)))["x-shoal-substituted"]
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= MAX_DIFFERS
