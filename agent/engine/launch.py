"""What a model's process is told to load, and how. Pure, but for the cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from agent.config import EngineConfig
from agent.engine.gpu import AUTO
from agent.engine.memory import Plan, reads_whole
from agent.engine.protocol import Load
from fleet.models.gguf import GgufFacts


def load_message(path: Path, facts: GgufFacts, plan: Plan, config: EngineConfig, sessions: Path) -> Load:
    """How a file is to be loaded; conversations with a name are kept in the folder `sessions`."""
    return Load(
        path=str(path),
        context_tokens=plan.context,
        threads=threads_of(config),
        gpu_layers=gpu_layers_of(config),
        slots=plan.slots,
        cells=plan.cells,
        batch=plan.batch,
        embeddings=int(facts.embedding),
        whole=int(reads_whole(facts)),
        pooling=facts.pooling if facts.pooling in ("mean", "cls", "last") else "",
        sessions=str(sessions),
        session_bytes=config.session_cache_mib << 20,
        flash_attention=config.flash_attention,
        blocks=facts.block_count,
        weights=plan.estimate.weights,
        cache=plan.estimate.kv,
        compute=plan.estimate.compute + plan.estimate.vectors,
        parking=plan.estimate.parking,
    )


def gpu_layers_of(config: EngineConfig) -> int:
    """The setting as a number, as `agent.engine.gpu` has it."""
    return AUTO if config.gpu_layers == "auto" else config.gpu_layers


def setup_of(config: EngineConfig) -> str:
    """What changes how fast a model is on this box, besides the engine."""
    return f"threads {threads_of(config)}, gpu_layers {config.gpu_layers}, flash_attention {config.flash_attention}"


def threads_of(config: EngineConfig) -> int:
    """All cores this process may use, less one for everything else where there are more than two."""
    cores = len(os.sched_getaffinity(0))
    return config.threads or (cores - 1 if cores > 2 else cores)
