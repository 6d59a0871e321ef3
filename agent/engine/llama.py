"""A model through llama.cpp's C API: its weights, vocabulary and text. Imported in the child process only.

The high-level class of llama-cpp-python 0.3.36 is not used: it is not safe for concurrent use, and cannot abort.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import llama_cpp as ll

from agent.engine.chat import Span, control_pattern
from agent.errors import EngineError, ModelLoadError

_WARNING: Final = 3
_CONTINUED: Final = 5


class Model:
    """A loaded model. What it says of text may be asked from any thread."""

    def __init__(self, path: str, *, gpu_layers: int) -> None:
        """Load; raises ModelLoadError. llama.cpp may also end the process on a file it does not expect."""
        #: While set, llama.cpp's complaint that a step was aborted is not passed on.
        self.quiet = False
        self._keep_log = ll.llama_log_callback(self._log)
        ll.llama_log_set(self._keep_log, ctypes.c_void_p(0))
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.load_mode = ll.LLAMA_LOAD_MODE_MMAP
        self.handle: Any = ll.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelLoadError("llama.cpp cannot load the file")
        if ll.llama_model_has_encoder(self.handle) or not ll.llama_model_has_decoder(self.handle):
            raise ModelLoadError("the model is not a text generator of the decoder kind")
        self.vocab: Any = ll.llama_model_get_vocab(self.handle)
        self.vocab_size: int = ll.llama_vocab_n_tokens(self.vocab)
        #: Tokens that a layer with a sliding window looks back on; 0 where every layer sees everything.
        self.window: int = ll.llama_model_n_swa(self.handle)
        #: Whether a sequence's memory is one state that cannot be cut back, as that of recurrent models.
        self.recurrent = bool(ll.llama_model_is_recurrent(self.handle) or ll.llama_model_is_hybrid(self.handle))
        self._bos = ll.llama_vocab_bos(self.vocab)
        #: The token that ends a text to be embedded: the separator of encoders, the end of text of others.
        self._end = -1
        if ll.llama_vocab_get_add_sep(self.vocab):
            self._end = ll.llama_vocab_sep(self.vocab)
        elif ll.llama_vocab_get_add_eos(self.vocab):
            self._end = ll.llama_vocab_eos(self.vocab)
        self._add_bos = bool(ll.llama_vocab_get_add_bos(self.vocab)) and self._bos >= 0

    def _log(self, level: int, text: bytes, _: object) -> None:
        """Warnings and errors go to standard error, where the agent reads them; that an abort is one is not news."""
        if _WARNING <= level < _CONTINUED and not self.quiet:
            sys.stderr.write(text.decode("utf-8", "replace"))
            sys.stderr.flush()

    def close(self) -> None:
        """Free it; contexts of it are to be freed before."""
        ll.llama_model_free(self.handle)

    # --- text -------------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The chat template of the model file, None where it has none."""
        found = ll.llama_model_chat_template(self.handle, None)
        return found.decode("utf-8", "replace") if found else None

    @property
    def bos_text(self) -> str:
        """The text of the token that begins a prompt, empty where there is none."""
        return self._text_of(self._bos)

    @property
    def eos_text(self) -> str:
        """The text of the token that ends a text, empty where there is none."""
        return self._text_of(ll.llama_vocab_eos(self.vocab))

    def control_texts(self) -> re.Pattern[str] | None:
        """Finds the text of any control token of the vocabulary."""
        control = ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN
        return control_pattern(
            self._text_of(token)
            for token in range(self.vocab_size)
            if ll.llama_vocab_get_attr(self.vocab, token) & control
        )

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest text that a token stands for, or more."""
        texts = (ll.llama_vocab_get_text(self.vocab, token) for token in range(self.vocab_size))
        return max((len(text) for text in texts if text), default=1)

    def tokenize(self, spans: Sequence[Span], *, ended: bool = False) -> list[int]:
        """A prompt's tokens; the token that begins a prompt is there once if the model expects it.

        `ended` adds the token that ends a text, where the model expects one.
        """
        tokens = [token for span in spans for token in self._tokenize(span.text, special=not span.plain)]
        if self._add_bos and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        if ended and self._end >= 0 and tokens and tokens[-1] != self._end:
            tokens.append(self._end)
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of a token's text; none for a control token."""
        buffer = ctypes.create_string_buffer(64)
        size = ll.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = ll.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(size, 0)]

    def ends_text(self, token: int) -> bool:
        """Whether the model says with this token that its text is complete."""
        return bool(ll.llama_vocab_is_eog(self.vocab, token))

    def native_template(self, template: str, messages: Sequence[tuple[str, str]]) -> str | None:
        """The prompt by one of the templates llama.cpp knows; None if it does not recognise this one."""
        turns = [(role.encode(), content.encode()) for role, content in messages]
        if any(b"\0" in content for _, content in turns):
            return None  # C strings end there
        chat = (ll.llama_chat_message * len(turns))(*(ll.llama_chat_message(r, c) for r, c in turns))
        size = 1024 + 2 * sum(len(content) for _, content in turns)
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            needed = ll.llama_chat_apply_template(template.encode(), chat, len(turns), True, buffer, size)
            if needed < 0:
                return None
            if needed <= size:
                return buffer.raw[:needed].decode("utf-8", "replace")
            size = needed
        return None

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")  # halves of characters may come from what a template has unpacked
        room = len(data) + 16
        for _ in range(2):
            tokens = (ll.llama_token * room)()
            count = ll.llama_tokenize(self.vocab, data, len(data), tokens, room, False, special)
            if count >= 0:
                return list(tokens[:count])
            room = -count  # a vocabulary of bytes may take three tokens for one
        raise EngineError(f"a text of {len(data)} bytes cannot be tokenised")

    def _text_of(self, token: int) -> str:
        text = ll.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""
