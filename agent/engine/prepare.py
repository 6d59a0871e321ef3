"""From a request to the tokens of its prompt. Imported in the child process only.

Templates and tokenizers may take long on what a peer sends; this runs in threads of its own (`agent.engine.desk`), so
that sequences that generate meanwhile do not wait for it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from agent.engine.chat import ChatTemplate, Shield
from agent.engine.llama import Model
from agent.engine.protocol import Submit
from agent.engine.sessions import Saved, Sessions
from agent.engine.structure.enforce import Enforcer, Vocabulary
from agent.engine.structure.grammar import grammar_for
from agent.engine.structure.prompt import build
from agent.errors import BadRequestError, ContextLengthError


@dataclass(frozen=True)
class Prepared:
    """A request that fits: its prompt, how many new tokens it may have, and what was left out of it.

    `enforcer` keeps the answer to its grammar; it has a state, and serves this request alone. `saved` is what is on
    disk of its conversation.
    """

    job: Submit
    tokens: list[int]
    limit: int
    cut: int = 0
    cut_messages: int = 0
    enforcer: Enforcer | None = None
    saved: Saved | None = None


class Preparer:
    """Prepares requests for one model; sequences have at most `context_tokens` tokens. Thread-safe."""

    def __init__(self, model: Model, context_tokens: int, sessions: Sessions | None = None) -> None:
        self._model = model
        self._sessions = sessions
        self._context_tokens = context_tokens
        self._control = model.control_texts()
        self._template = ChatTemplate(
            model.chat_template, bos=model.bos_text, eos=model.eos_text, native=model.native_template
        )
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()

    def prepare(self, job: Submit) -> Prepared:
        """Raises ContextLengthError with both numbers, or BadRequestError."""
        self._refuse_what_is_no_token(job)
        self._refuse_what_cannot_fit(job)
        grammar = grammar_for(job, self._template.call_form)
        enforcer = Enforcer(grammar, self._words(), job.prefix) if grammar else None
        prompt = build(job, self._template, lambda: Shield(self._control), self._model.tokenize, self._context_tokens)
        limit = self._context_tokens - len(prompt.tokens)
        saved = self._sessions.load(job.owner, job.session) if self._sessions and job.session else None
        limit = min(limit, job.max_tokens or limit)
        return Prepared(job, prompt.tokens, limit, prompt.cut_tokens, prompt.cut_messages, enforcer, saved)

    def _refuse_what_is_no_token(self, job: Submit) -> None:
        """Raise BadRequestError for a bias on what the model has no token for: it was meant for another model."""
        size = self._model.vocab_size
        for token, _ in job.logit_bias:
            if not 0 <= token < size:
                raise BadRequestError(
                    f"logit_bias: {token} is no token of the model; its vocabulary has {size}, from 0 to {size - 1}",
                    details={"token": token, "vocab_size": size},
                )

    def _refuse_what_cannot_fit(self, job: Submit) -> None:
        """Raise ContextLengthError for a text that is too long whatever its tokens: finding them may take seconds."""
        if job.truncate:
            return
        texts = [job.prompt, job.prefix, *(content for _, content, _ in job.messages)]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        least = -(-size // self._model.longest_token)
        if self._control is not None and least < self._context_tokens < size:
            least = max(least, sum(1 for text in texts for _ in self._control.finditer(text)))
        if least >= self._context_tokens:
            raise ContextLengthError(
                f"the prompt has {least} tokens or more and the model's context {self._context_tokens}; shorten the"
                " prompt",
                details={"prompt_tokens": least, "context_tokens": self._context_tokens},
            )

    def _words(self) -> Vocabulary:
        """All texts of the vocabulary: a second's work for a large one, done when the first grammar comes."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._model.vocab_size, self._model.piece, self._model.ends_text)
            return self._vocabulary
