"""From a request to the tokens of its prompt. Imported in the child process only.

Templates and tokenizers may take long on what a peer sends; this runs in a thread of its own, so that sequences that
generate meanwhile do not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.chat import ChatTemplate, Shield
from agent.engine.llama import Model
from agent.engine.protocol import Submit
from agent.engine.sessions import Saved, Sessions
from agent.engine.structure.enforce import Enforcer, Vocabulary
from agent.engine.structure.grammar import grammar_for
from agent.engine.structure.prompt import build


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
    """Prepares requests for one model; sequences have at most `context_tokens` tokens."""

    def __init__(self, model: Model, context_tokens: int, sessions: Sessions | None = None) -> None:
        self._model = model
        self._sessions = sessions
        self._context_tokens = context_tokens
        self._control = model.control_texts()
        self._template = ChatTemplate(
            model.chat_template, bos=model.bos_text, eos=model.eos_text, native=model.native_template
        )
        self._vocabulary: Vocabulary | None = None

    def prepare(self, job: Submit) -> Prepared:
        """Raises ContextLengthError with both numbers, or BadRequestError."""
        grammar = grammar_for(job, self._template.call_form)
        enforcer = Enforcer(grammar, self._words(), job.prefix) if grammar else None
        prompt = build(job, self._template, lambda: Shield(self._control), self._model.tokenize, self._context_tokens)
        limit = self._context_tokens - len(prompt.tokens)
        saved = self._sessions.load(job.owner, job.session) if self._sessions and job.session else None
        limit = min(limit, job.max_tokens or limit)
        return Prepared(job, prompt.tokens, limit, prompt.cut_tokens, prompt.cut_messages, enforcer, saved)

    def _words(self) -> Vocabulary:
        """All texts of the vocabulary: a second's work for a large one, done when the first grammar comes."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._model.vocab_size, self._model.piece, self._model.ends_text)
        return self._vocabulary
