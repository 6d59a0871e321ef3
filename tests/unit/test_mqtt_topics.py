"""Topics of a box: what they are, what matches, and where nobody may make it speak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from agent.mqtt.topics import Topics, filter_problem, level_of, matches, node_of, topic_problem

TOPICS = Topics("shops", "0123456789abcdef")
LEVELS = st.lists(st.sampled_from(["a", "b", "", "$x", "long level"]), min_size=1, max_size=4).map("/".join)
FILTERS = st.lists(st.sampled_from(["a", "b", "", "+", "$x"]), min_size=1, max_size=4).flatmap(
    lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"])])
)


@given(FILTERS, LEVELS)
def test_filters_mean_what_they_mean_to_another_implementation(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)


@pytest.mark.parametrize("topic", ["", "a/+/b", "#", "a\0b", "$SYS/x", "x" * 513, "a\nb"])
def test_what_is_no_topic_is_not_published_to(topic: str) -> None:
    assert topic_problem(topic)
    assert TOPICS.reply_problem(topic)


@pytest.mark.parametrize("text", ["", "a#", "#/a", "a/b+", "$share/g/t", "a\tb", "x" * 513])
def test_what_is_no_filter_is_not_subscribed_to(text: str) -> None:
    assert filter_problem(text)


@pytest.mark.parametrize("topic", ["shoal/v1/shops/infer/request", "shoal", "homeassistant/status"])
def test_answers_go_to_no_topic_on_which_boxes_or_home_assistant_speak(topic: str) -> None:
    assert TOPICS.reply_problem(topic)


def test_names_become_levels_and_keys_become_nodes() -> None:
    assert level_of("Shops & Co. / Berlin") == "shops-co.-berlin"
    assert level_of("+#/") == "fleet"
    assert node_of(bytes(range(32))) == "0001020304050607"


def test_what_comes_in_is_read_back_and_nothing_else_is() -> None:
    other = "fedcba9876543210"
    assert TOPICS.cancelled(f"{TOPICS.own}/infer/a.b:c-1/cancel") == "a.b:c-1"
    assert TOPICS.cancelled(f"{TOPICS.own}/infer/a/b/cancel") is None
    assert TOPICS.cancelled(f"shoal/v1/shops/{other}/infer/a/cancel") is None
    assert TOPICS.leased(f"shoal/v1/shops/{other}/lease/a") == (other, "a")
    assert TOPICS.leased(f"shoal/v1/other/{other}/lease/a") is None
    assert TOPICS.leased("shoal/v1/shops/UPPER/lease/a") is None
    assert TOPICS.available(f"shoal/v1/shops/{other}/availability") == other
    assert TOPICS.available("shoal/v1/shops/x/availability") is None
