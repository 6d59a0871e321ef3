"""A flag that llama.cpp reads by itself, some 500 times a token, to see whether a step is to be left.

A callback in Python needs the interpreter's lock every time. While nobody else wants it that is not to be measured;
beside a thread that reads templates or grammars a token of SmolLM2-135M took 35 ms with it and takes 22 without. So
what is called is a function of the C library, and the flag is what it reads: `strlen` of a text that is empty, or not.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llama_cpp as ll

_UP: Final = b"\x01"
_DOWN: Final = b"\x00"


class AbortFlag:
    """Down until `up`; both ends may be used by any thread. To be kept for as long as a context may read it."""

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, ll.ggml_abort_callback)

    def watch(self, params: Any) -> None:
        """Let a context that is made of these `llama_context_params` read the flag."""
        params.abort_callback = self._strlen
        params.abort_callback_data = ctypes.addressof(self._text)

    def up(self) -> None:
        """The step that runs now, or the next one, is to be left."""
        self._text[0] = _UP

    def down(self) -> None:
        """Steps are to be done."""
        self._text[0] = _DOWN
