"""How many layers go to a GPU: by setting, by build, by memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import EngineConfig
from agent.config_file import parse
from agent.engine.gpu import ALL, AUTO, Device, layers_for
from agent.engine.launch import gpu_layers_of
from agent.engine.memory import MIB
from agent.errors import ConfigError

GIB = 1024 * MIB
CARD = Device("CUDA0", 8 * GIB, 8 * GIB)
MODEL = {"blocks": 30, "weights": 4 * GIB, "cache": GIB, "compute": 100 * MIB}


def layers(setting: int, *devices: Device, offload: bool = True, **more: Any) -> int:
    return layers_for(setting, offload=offload, devices=devices, **{**MODEL, **more})


@pytest.mark.parametrize("setting", [AUTO, ALL, 0, 5, 10_000])
def test_without_a_gpu_or_a_build_for_one_none_go_there(setting: int) -> None:
    assert layers(setting, CARD, offload=False) == 0
    assert layers(setting) == 0


def test_what_fits_goes_there_and_of_what_does_not_a_part() -> None:
    assert layers(AUTO, CARD) == 31
    assert layers(AUTO, Device("CUDA0", 2 * GIB, 8 * GIB)) == (2 * GIB - 8 * GIB // 20 - 100 * MIB) * 31 // (5 * GIB)
    assert layers(AUTO, Device("CUDA0", 300 * MIB, 8 * GIB)) == 0
    assert layers(AUTO, Device("CUDA0", 3 * GIB, 3 * GIB), Device("CUDA1", 3 * GIB, 3 * GIB)) == 31
    assert layers(AUTO, CARD, weights=7 * GIB) < 31


def test_a_number_is_taken_at_its_word() -> None:
    tiny = Device("Vulkan0", 0, 512 * MIB)
    assert [layers(setting, tiny) for setting in (ALL, 0, 5, 31, 99)] == [31, 0, 5, 31, 31]


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(1, 500), st.integers(1, 1 << 40))
def test_more_memory_never_means_fewer_layers(free: int, more: int, blocks: int, weights: int) -> None:
    counts = [layers(AUTO, Device("g", size, 1 << 41), blocks=blocks, weights=weights) for size in (free, free + more)]
    assert 0 <= counts[0] <= counts[1] <= blocks + 1


@pytest.mark.parametrize(("said", "meant"), [("auto", AUTO), (-1, ALL), (0, 0), (12, 12)])
def test_the_setting_is_a_word_or_a_number(said: Any, meant: int) -> None:
    assert gpu_layers_of(EngineConfig(gpu_layers=said)) == meant


def test_auto_is_what_nobody_has_to_say() -> None:
    assert (EngineConfig().gpu_layers, EngineConfig().flash_attention) == ("auto", "auto")


@pytest.mark.parametrize(("said", "found"), [("auto", "auto"), ("on", "on"), ("off", "off"), ('"on"', "on")])
def test_flash_attention_is_a_switch_in_the_words_of_yaml(said: str, found: str) -> None:
    config = parse(f"name: a\nengine: {{gpu_layers: -1, flash_attention: {said}}}\n", "f", Path("/"), {})
    assert (config.engine.gpu_layers, config.engine.flash_attention) == (-1, found)


@pytest.mark.parametrize("said", ["gpu_layers: -2", "gpu_layers: lots", "gpu_layers: true", "flash_attention: 1"])
def test_what_is_no_setting_is_refused_with_those_there_are(said: str) -> None:
    with pytest.raises(ConfigError, match=r"f:2: engine\..* must be auto, "):
        parse(f"name: a\nengine: {{{said}}}\n", "f", Path("/"), {})
