"""What a box tells of its hardware, as far as it is found out here."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.hardware import gpu_name
from agent.own_facts import steady


def test_the_name_of_a_gpu_is_what_the_driver_says(tmp_path: Path) -> None:
    assert gpu_name(tmp_path) == ""
    board = tmp_path / "proc/device-tree/model"
    board.parent.mkdir(parents=True)
    board.write_bytes(b"Raspberry Pi 5 Model B\0")
    assert gpu_name(tmp_path) == ""
    board.write_bytes(b"NVIDIA Jetson Orin Nano\0")
    assert gpu_name(tmp_path) == "NVIDIA Jetson Orin Nano"
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    card.parent.mkdir(parents=True)
    card.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 120\n")
    assert gpu_name(tmp_path) == "NVIDIA H200"


@given(st.lists(st.integers(0, 1 << 40), max_size=30))
def test_what_is_told_of_room_is_never_more_than_there_is_nor_much_less(amounts: list[int]) -> None:
    told = 0
    for now in amounts:
        told = steady(told, now)
        assert now * 0.9 - 1 <= told <= now
        assert steady(told, now) == told
