"""From a request to the tokens of its prompt. Imported in the child process only.

Templates and tokenizers may take long on what a peer sends; this runs in a thread of its own, so that sequences that
generate meanwhile do not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.chat import ChatTemplate, Shield, Span
from agent.engine.llama import Model
from agent.engine.protocol import Submit
from agent.errors import BadRequestError, ContextLengthError


@dataclass(frozen=True)
class Prepared:
    """A request that fits: its prompt, how many new tokens it may have, what was cut, and the grammar it obeys."""

    job: Submit
    tokens: list[int]
    limit: int
    cut: int = 0
    grammar: str = ""


class Preparer:
    """Prepares requests for one model; sequences have at most `context_tokens` tokens."""

    def __init__(self, model: Model, context_tokens: int) -> None:
        self._model = model
        self._context_tokens = context_tokens
        self._control = model.control_texts()
        self._template = ChatTemplate(
            model.chat_template, bos=model.bos_text, eos=model.eos_text, native=model.native_template
        )

    def prepare(self, job: Submit) -> Prepared:
        """Raises ContextLengthError with both numbers, or BadRequestError."""
        tokens = self._prompt(job)
        limit = self._context_tokens - len(tokens)
        if limit < 1:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens and the model's context {self._context_tokens};"
                " shorten the prompt",
                details={"prompt_tokens": len(tokens), "context_tokens": self._context_tokens},
            )
        if not tokens:
            raise BadRequestError("the prompt is empty", details={"param": "prompt"})
        grammar = job.output_text if job.output == "grammar" else ""
        return Prepared(job, tokens, min(limit, job.max_tokens or limit), grammar=grammar)

    def _prompt(self, job: Submit) -> list[int]:
        shield = Shield(self._control)
        if job.kind == "completion":
            # A completion's prompt is the whole prompt as its author wants it, control tokens included.
            return self._model.tokenize([Span(job.prompt), *shield.spans(shield.cover(job.prefix))])
        covered = [(role, shield.cover(content)) for role, content, _ in job.messages]
        rendered = self._template.render(covered) + shield.cover(job.prefix)
        return self._model.tokenize(shield.spans(rendered))
