"""The arithmetic of the engine's bench, and what it takes for a comparison."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.bench.engine_runs import Run, Stream, figures, first_difference, percentile, prompts, uneven
from tests.bench.engine_same import questions
from tests.bench.llama_server import Events, ggml_options, same_commit
from tests.models import put_together, sha256_of


def run(seconds: float, *streams: Stream) -> Run:
    return Run(seconds, streams or (Stream((0.1, 0.2), 64, 100, 1000.0),))


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.95) == 95
    assert percentile(values, 0.5) == 50
    assert percentile([7.0], 0.95) == 7
    assert percentile([1.0, 9.0], 0.95) == 9
    with pytest.raises(ValueError):
        percentile([], 0.5)


def test_rates_are_of_all_requests_together_and_gaps_of_each() -> None:
    both = run(2.0, Stream((0.5, 0.6, 0.8), 3, 100, 200.0), Stream((1.0, 1.1, 1.2), 3, 100, 100.0))
    assert both.rate == 3.0
    assert both.ttft == [500.0, 1000.0]
    assert both.gap95 == pytest.approx(200.0)
    assert both.own_rate == pytest.approx((10 + 20) / 2)
    assert run(2.0, Stream((0.5,), 3, 100, 200.0), Stream((1.0,), 3, 100)).own_rate is None


@pytest.mark.parametrize(
    ("at_once", "server", "serial", "held"),
    [
        (1, 0.94, 1.0, False),
        (1, 0.96, 1.0, True),
        (8, 0.94, None, False),
        (16, 0.91, 1.9, True),
        (16, 0.89, 1.9, False),
        (16, 0.91, 1.7, False),
    ],
)
def test_limits_depend_on_how_many_ask_at_once(at_once: int, server: float, serial: float | None, held: bool) -> None:
    runs = {"ours": run(1.0), "server": run(server)}  # the longer it takes, the lower its rate
    runs |= {"serial": run(serial)} if serial else {}
    assert all(figure.ok for figure in figures("M", at_once, [runs, runs, runs])) == held


def test_ratios_are_of_medians_over_rounds() -> None:
    rounds = [{"ours": run(ours), "server": run(server)} for ours, server in ((1.0, 1.0), (2.0, 4.0), (9.0, 2.0))]
    first = figures("M", 4, rounds)[0]
    assert (first.ours, first.theirs, first.ratio) == (32.0, 32.0, 1.0)
    assert first.runs == [64.0, 32.0, 7.111]


def test_a_round_is_no_comparison_unless_all_answers_and_prompts_have_one_length() -> None:
    short = run(1.0, Stream((0.1,), 63, 100))
    other = run(1.0, Stream((0.1,), 64, 101))
    assert uneven({"ours": run(1.0), "server": run(2.0)}, 64) == ""
    assert "[63]" in uneven({"ours": run(1.0), "server": short}, 64)
    assert "101" in uneven({"ours": run(1.0), "server": other}, 64)


def test_prompts_share_no_beginning_and_are_the_same_every_time() -> None:
    found = prompts(16, seed=3)
    assert found == prompts(16, seed=3)
    assert len({prompt[:12] for prompt in found}) == 16
    assert not set(found) & set(prompts(16, seed=4))
    assert len(set(questions(50))) == 50


def test_where_two_answers_part() -> None:
    assert first_difference(("a", "b"), ("a", "b")) is None
    assert first_difference(("a", "b"), ("a", "c")) == 1
    assert first_difference(("a",), ("a", "b")) == 1


TIMINGS = {"prompt_n": 5, "prompt_ms": 7.5, "predicted_ms": 9.5}
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\ndata: %b\n\n\r\n" % (len(event) + 8, event)
    for event in [
        json.dumps({"content": " sea", "stop": False}).encode(),
        json.dumps({"content": " sea", "stop": False}).encode(),
        json.dumps({"content": "", "stop": True, "tokens_predicted": 2, "timings": TIMINGS}).encode(),
    ]
)


@pytest.mark.parametrize("size", [1, 5, 7, 64, 10_000])
def test_events_are_counted_however_the_bytes_are_cut(size: int) -> None:
    events = Events()
    counted = [events.feed(ANSWER[at : at + size]) for at in range(0, len(ANSWER), size)]
    assert sum(counted) == 3
    end = events.end()
    assert (end.texts, end.prompt_tokens, end.tokens, end.prefill_ms, end.decode_ms) == (
        (" sea", " sea"),
        5,
        2,
        7.5,
        9.5,
    )


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Unavailable\r\n\r\n{}", ANSWER[:120], b""])
def test_an_answer_that_is_none_is_told(answer: bytes) -> None:
    events = Events()
    events.feed(answer)
    with pytest.raises(ValueError):
        events.end()


def test_build_options_are_those_the_package_recorded() -> None:
    lines = ['AVX2 "OFF"', 'NATIVE "ON"', 'NATIVE_DEFAULT "ON"', 'VERSION "0.25.3"', 'OPENMP "ON"']
    config = "".join(f"set(GGML_{line})\n" for line in lines)
    assert ggml_options(config) == {"GGML_AVX2": "OFF", "GGML_NATIVE": "ON", "GGML_OPENMP": "ON"}


def test_only_the_sources_of_the_installed_commit_will_do() -> None:
    assert same_commit("0c1e570-dirty", "0c1e57098bba43ac29e6e3b677cdceebdd22334f")
    assert not same_commit("0c1e571", "0c1e57098bba43ac29e6e3b677cdceebdd22334f")
    assert not same_commit("", "0c1e57098bba43ac29e6e3b677cdceebdd22334f")


def test_a_model_in_parts_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("a", "b")]
    for part in parts:
        part.write_bytes(part.name.encode() * 10)
    whole = tmp_path / "cache" / "whole"
    with pytest.raises(ValueError, match="install its packages again"):
        put_together(parts, whole, "0" * 64)
    assert list(whole.parent.iterdir()) == []
    assert (
        put_together(parts, whole, hashlib.sha256(b"a" * 10 + b"b" * 10).hexdigest()).read_bytes()
        == b"a" * 10 + b"b" * 10
    )
    assert sha256_of(whole) == hashlib.sha256(whole.read_bytes()).hexdigest()
