"""How a grammar, a schema or a list of functions is refused: what is wrong, and where."""

from __future__ import annotations

from agent.errors import BadRequestError


class GrammarError(BadRequestError):
    """A grammar cannot be used; `details` has the `line` and `column` (from 1, in characters) where that is so."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(
            f"grammar: line {line}, column {column}: {message}",
            details={"param": "grammar", "line": line, "column": column},
        )


class SchemaError(BadRequestError):
    """A schema cannot be used; `details["pointer"]` is the JSON Pointer of the place in it.

    `param` is the field, and after a colon which of several schemas in it.
    """

    def __init__(self, message: str, pointer: str, param: str = "response_format") -> None:
        shown = pointer if len(pointer) <= 200 else pointer[:200] + "..."
        super().__init__(
            f"{param}: at {shown or 'the root'} of the schema: {message}",
            details={"param": param.partition(":")[0], "pointer": shown},
        )
        self.reason = message
        self.pointer = pointer
