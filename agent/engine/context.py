"""A context of llama.cpp: the memory of many sequences in one pool of cells, and one decoding step over some of them.

Imported in the child process only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import llama_cpp as ll
import numpy as np

from agent.engine.abort_flag import AbortFlag
from agent.engine.llama import Model
from agent.engine.schedule import Running, Slice
from agent.errors import EngineError, ModelLoadError

#: Tokens in one step.
BATCH: Final = 512

#: Whether attention is computed in one pass, by the word of the configuration.
FLASH: Final = {
    "auto": ll.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": ll.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": ll.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}

_BYTES: Final = ctypes.POINTER(ctypes.c_uint8)

_NO_ROOM: Final = 1
_ABORTED: Final = 2


class AbortedError(Exception):
    """`abort` ended a decoding step; nothing of it is left in the memory."""


class LostError(EngineError):
    """A step failed, and the memory of `sequences` with it: they are to be decoded from their beginning again."""

    def __init__(self, message: str, sequences: Sequence[Running], *, aborted: bool) -> None:
        super().__init__(message)
        self.sequences = sequences
        self.aborted = aborted


class NoRoomError(Exception):
    """There are no cells for a step."""


class Context:
    """The sequences of one model. Everything but `abort` belongs to one thread."""

    def __init__(
        self, model: Model, *, cells: int, sequences: int, threads: int, batch: int = BATCH, flash: str = "auto"
    ) -> None:
        """`cells` tokens in all, of at most `sequences` sequences, `batch` in a step. Raises ModelLoadError."""
        self._model = model
        self._flag = AbortFlag()
        params = ll.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = min(batch, cells)
        params.n_seq_max = sequences
        # Room for one token's logits a sequence: for a whole batch of a large vocabulary it would be half a gigabyte.
        params.n_outputs_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = FLASH[flash]
        # Layers with a sliding window keep that window only: full-size ones cost Gemma a tenth of its speed.
        params.swa_full = False
        params.no_perf = True
        self._flag.watch(params)
        self.handle: Any = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ModelLoadError(f"llama.cpp cannot make a context of {cells} tokens; lower engine.context_tokens")
        self.batch: int = params.n_batch
        self._memory = ll.llama_get_memory(self.handle)
        self._tokens = (ll.llama_token * self.batch)()
        self._positions = (ll.llama_pos * self.batch)()
        self._counts = (ctypes.c_int32 * self.batch)(*([1] * self.batch))
        self._numbers = [(ll.llama_seq_id * 1)(number) for number in range(sequences)]
        pointer = ctypes.POINTER(ll.llama_seq_id)
        self._pointers = [ctypes.cast(number, pointer) for number in self._numbers]
        self._sequences = (pointer * (self.batch + 1))()
        self._wanted = (ctypes.c_int8 * self.batch)()
        self._batch = ll.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._sequences,
            logits=self._wanted,
        )

    def close(self) -> None:
        """Free it."""
        ll.llama_free(self.handle)

    def decode(self, slices: Sequence[Slice]) -> list[int]:
        """One step; returns, for each slice, where its logits are, -1 where it does not complete its sequence.

        Raises AbortedError after `abort`, NoRoomError, and EngineError when llama.cpp fails; the memory then is as it
        was before, but for what a LostError names.
        """
        at = 0
        where: list[int] = []
        for one in slices:
            end, start = at + one.count, one.start
            self._tokens[at:end] = one.sequence.tokens[start : start + one.count]
            self._positions[at:end] = range(start, start + one.count)
            self._sequences[at:end] = [self._pointers[one.sequence.seq]] * one.count
            self._wanted[at:end] = [0] * one.count
            if one.completes:
                self._wanted[end - 1] = 1
            where.append(end - 1 if one.completes else -1)
            at = end
        self._batch.n_tokens = at
        code = ll.llama_decode(self.handle, self._batch)
        if code == 0:
            return where
        if code == _NO_ROOM:
            raise NoRoomError
        lost = [one.sequence for one in slices if not self.forget(one.sequence.seq, one.start)]
        for sequence in lost:
            self.forget(sequence.seq)
        if lost:
            raise LostError(f"llama.cpp failed to decode (code {code})", lost, aborted=code == _ABORTED)
        if code == _ABORTED:
            raise AbortedError
        raise EngineError(f"llama.cpp failed to decode (code {code})")

    def logits(self, index: int) -> np.ndarray:
        """The logits at a place that `decode` gave; valid until the next step."""
        found = ll.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(found, shape=(self._model.vocab_size,))

    # --- memory -----------------------------------------------------------------------------------------------------

    def forget(self, seq: int, start: int = 0) -> bool:
        """Forget a sequence from a position on; False where only all of it can be forgotten, and nothing was."""
        return bool(ll.llama_memory_seq_rm(self._memory, seq, start if start else -1, -1))

    def copy(self, source: int, seq: int, length: int) -> None:
        """Let an empty sequence begin with the first `length` tokens of another, in the same cells."""
        ll.llama_memory_seq_cp(self._memory, source, seq, 0, length)

    def state_size(self, seq: int) -> int:
        """Bytes of the memory of one sequence."""
        return int(ll.llama_state_seq_get_size(self.handle, seq))

    def state(self, seq: int) -> memoryview:
        """The memory of one sequence, for `restore`."""
        buffer = np.empty(self.state_size(seq), dtype=np.uint8)
        written = ll.llama_state_seq_get_data(self.handle, buffer.ctypes.data_as(_BYTES), len(buffer), seq)
        return buffer[:written].data

    def restore(self, seq: int, state: bytes | memoryview) -> bool:
        """Give an empty sequence the memory of `state`; False where there is no room, or it is of another model."""
        buffer = np.frombuffer(state, dtype=np.uint8)
        return bool(ll.llama_state_seq_set_data(self.handle, buffer.ctypes.data_as(_BYTES), len(buffer), seq))

    # --- cancelling -------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the decoding step that runs now, or the next one; safe from any thread."""
        self._model.quiet = True
        self._flag.up()

    def resume(self) -> None:
        """Take `abort` back."""
        self._flag.down()
        self._model.quiet = False
