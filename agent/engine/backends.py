"""The parts of llama.cpp that a build may keep in files of their own. Imported in the child process only.

An image that runs on any machine has the CPU code several times, once for each generation of processors
(GGML_BACKEND_DL and GGML_CPU_ALL_VARIANTS). llama.cpp's own programs load the one that suits; here it is up to us.
"""

from __future__ import annotations

import ctypes
import os

from llama_cpp import _ggml


def load_backends() -> None:
    """Load what suits this machine, where the build links nothing of it; blocks on the disk.

    Where nothing suits, the model that is loaded next fails with llama.cpp's own words.
    """
    ggml = _ggml.libggml
    ggml.ggml_backend_reg_count.argtypes, ggml.ggml_backend_reg_count.restype = [], ctypes.c_size_t
    if ggml.ggml_backend_reg_count() > 0:
        return
    load = ggml.ggml_backend_load_all_from_path
    load.argtypes, load.restype = [ctypes.c_char_p], None
    # By default ggml looks beside the program, which is Python, and in the current folder, where anything may lie.
    load(os.fsencode(_ggml.libggml_base_path))
