"""llama.cpp through its C API: one model, one context, one sequence. Imported in the child process only.

The high-level class of llama-cpp-python 0.3.36 is not used: it is not safe for concurrent use, and cannot abort.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import llama_cpp as ll

from agent.engine.chat import Span, control_pattern
from agent.errors import EngineError, ModelLoadError

BATCH: Final = 512
TOP_K: Final = 40
MIN_P: Final = 0.05

_WARNING: Final = 3
_CONTINUED: Final = 5
_ABORTED: Final = 2


class AbortedError(Exception):
    """`abort` ended a decoding step; the context is to be cleared and is then as new."""


class Model:
    """A loaded model and its context. Everything but `abort` belongs to one thread."""

    def __init__(self, path: str, *, context_tokens: int, threads: int, gpu_layers: int) -> None:
        """Load; raises ModelLoadError. llama.cpp may also end the process on a file it does not expect."""
        self._aborting = False
        self._keep_log = ll.llama_log_callback(self._log)
        ll.llama_log_set(self._keep_log, ctypes.c_void_p(0))
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.load_mode = ll.LLAMA_LOAD_MODE_MMAP
        self._model = ll.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelLoadError("llama.cpp cannot load the file")
        if ll.llama_model_has_encoder(self._model) or not ll.llama_model_has_decoder(self._model):
            raise ModelLoadError("the model is not a text generator of the decoder kind")
        self._vocab = ll.llama_model_get_vocab(self._model)
        self.context_tokens = context_tokens
        self._context, self._keep_callback = self._open_context(threads)
        self._memory = ll.llama_get_memory(self._context)
        self._tokens = (ll.llama_token * BATCH)()
        self._piece = ctypes.create_string_buffer(256)
        self._bos = ll.llama_vocab_bos(self._vocab)
        self._add_bos = bool(ll.llama_vocab_get_add_bos(self._vocab)) and self._bos >= 0
        self.vocab_size: int = ll.llama_vocab_n_tokens(self._vocab)

    def _open_context(self, threads: int) -> tuple[Any, Any]:
        params = ll.llama_context_default_params()
        params.n_ctx = self.context_tokens
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        # llama.cpp asks this at every node of its graph, some 500 times a token; measured under 2 % of the decode time.
        callback = ll.ggml_abort_callback(lambda _: self._aborting)
        params.abort_callback = callback
        context = ll.llama_init_from_model(self._model, params)
        if not context:
            raise ModelLoadError(
                f"llama.cpp cannot make a context of {self.context_tokens} tokens; lower engine.context_tokens"
            )
        return context, callback

    def _log(self, level: int, text: bytes, _: object) -> None:
        """Warnings and errors go to standard error, where the agent reads them; that an abort is one is not news."""
        if _WARNING <= level < _CONTINUED and not self._aborting:
            sys.stderr.write(text.decode("utf-8", "replace"))
            sys.stderr.flush()

    def close(self) -> None:
        """Free the context and the model."""
        ll.llama_free(self._context)
        ll.llama_model_free(self._model)

    # --- text -------------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The chat template of the model file, None where it has none."""
        found = ll.llama_model_chat_template(self._model, None)
        return found.decode("utf-8", "replace") if found else None

    @property
    def bos_text(self) -> str:
        """The text of the token that begins a prompt, empty where there is none."""
        return self._text_of(self._bos)

    @property
    def eos_text(self) -> str:
        """The text of the token that ends a text, empty where there is none."""
        return self._text_of(ll.llama_vocab_eos(self._vocab))

    def control_texts(self) -> re.Pattern[str] | None:
        """Finds the text of any control token of the vocabulary."""
        control = ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN
        return control_pattern(
            self._text_of(token)
            for token in range(self.vocab_size)
            if ll.llama_vocab_get_attr(self._vocab, token) & control
        )

    def tokenize(self, spans: Sequence[Span]) -> list[int]:
        """A prompt's tokens; the token that begins a prompt is there once if the model expects it."""
        tokens = [token for span in spans for token in self._tokenize(span.text, special=not span.plain)]
        if self._add_bos and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of a token's text; none for a control token."""
        size = ll.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        if size < 0:
            self._piece = ctypes.create_string_buffer(-size)
            size = ll.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        return self._piece.raw[: max(size, 0)]

    def ends_text(self, token: int) -> bool:
        """Whether the model says with this token that its text is complete."""
        return bool(ll.llama_vocab_is_eog(self._vocab, token))

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
        data = text.encode()
        room = len(data) + 16
        tokens = (ll.llama_token * room)()
        count = ll.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
        if count < 0:
            raise EngineError(f"a text of {len(data)} bytes gave more than {room} tokens")
        return list(tokens[:count])

    def _text_of(self, token: int) -> str:
        text = ll.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    # --- decoding ---------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget the sequence; nothing of it is left for the next."""
        ll.llama_memory_seq_rm(self._memory, 0, -1, -1)

    def decode(self, tokens: Sequence[int]) -> None:
        """Append at most BATCH tokens to the sequence; the last one's logits can then be sampled.

        Raises AbortedError after `abort`, EngineError when llama.cpp fails.
        """
        count = len(tokens)
        self._tokens[:count] = tokens
        code = ll.llama_decode(self._context, ll.llama_batch_get_one(self._tokens, count))
        if code == _ABORTED:
            raise AbortedError
        if code != 0:
            raise EngineError(f"llama.cpp failed to decode (code {code})")

    def abort(self) -> None:
        """End the decoding step that runs now, or the next one; safe from any thread."""
        self._aborting = True

    def resume(self) -> None:
        """Take `abort` back."""
        self._aborting = False

    def sampler(self, *, temperature: float, top_p: float, seed: int) -> Sampler:
        """A sampler for one sequence; `close` frees it. Temperature 0 is greedy."""
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        if temperature <= 0:
            parts = [ll.llama_sampler_init_greedy()]
        else:
            parts = [
                ll.llama_sampler_init_top_k(TOP_K),
                ll.llama_sampler_init_top_p(top_p, 1),
                ll.llama_sampler_init_min_p(MIN_P, 1),
                ll.llama_sampler_init_temp(temperature),
                ll.llama_sampler_init_dist(seed),
            ]
        for part in parts:
            ll.llama_sampler_chain_add(chain, part)
        return Sampler(chain, self._context)


class Sampler:
    """Chooses tokens for one sequence."""

    def __init__(self, chain: Any, context: Any) -> None:
        self._chain = chain
        self._context = context

    def sample(self) -> int:
        """The next token, from the logits of the last token decoded."""
        return int(ll.llama_sampler_sample(self._chain, self._context, -1))

    def close(self) -> None:
        """Free it."""
        ll.llama_sampler_free(self._chain)
