"""The GPUs that llama.cpp can use on this box. Imported in the child process only."""

from __future__ import annotations

import ctypes
from typing import Final

import llama_cpp as ll
from llama_cpp import _ggml

from agent.engine.gpu import Device

#: ggml_backend_dev_type in ggml-backend.h: a GPU with memory of its own, and one that shares that of the box.
_GPUS: Final = (1, 2)


def can_offload() -> bool:
    """Whether llama.cpp was built for GPUs."""
    return bool(ll.llama_supports_gpu_offload())


def devices() -> list[Device]:
    """Every GPU, with its memory as it is now."""
    ggml = _ggml.libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    ggml.ggml_backend_dev_type.argtypes, ggml.ggml_backend_dev_type.restype = [ctypes.c_void_p], ctypes.c_int
    ggml.ggml_backend_dev_name.argtypes, ggml.ggml_backend_dev_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    sizes = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.argtypes, ggml.ggml_backend_dev_memory.restype = [ctypes.c_void_p, sizes, sizes], None
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        if ggml.ggml_backend_dev_type(handle) in _GPUS:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
            name = ggml.ggml_backend_dev_name(handle).decode("utf-8", "replace")
            found.append(Device(name, free.value, total.value))
    return found
