"""What commands print: aligned text for people, one JSON object for programs, errors with their remedy."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click

from agent.cli.exits import exit_code

F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """The `-o text|json` option that every command has."""
    option = click.option(
        "-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", help="text for people, or json"
    )
    return option(function)


def rows_output_option(function: F) -> F:
    """The `-o text|json|csv` option of commands that list what may be long: one JSON object, or one row, a line."""
    option = click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["text", "json", "csv"]),
        default="text",
        help="text for people, json (one object a line) or csv",
    )
    return option(function)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, for errors that are found before it is parsed."""
    pairs = zip(("", *arguments), arguments, strict=False)
    return any(
        (before in ("-o", "--output") and word == "json") or word in ("-ojson", "--output=json", "-o=json")
        for before, word in pairs
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def fail(form: str, code: str, message: str, details: Mapping[str, Any] | None = None) -> NoReturn:
    """Report an error and end with its exit code: JSON on standard output, or text on standard error."""
    if form == "json":
        print_json({"error": {"code": code, "message": message, "details": dict(details or {})}})
    else:
        click.echo(f"shoal: {printable(message, keep_lines=True)}", err=True)
    sys.exit(exit_code(code))


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    rigid: Collection[str] = (),
    keep_end: Collection[str] = (),
    spare: Sequence[str] = (),
) -> str:
    """Rows under a header, columns aligned; as wide as the terminal at most, and whole where the output is no terminal.

    What gives way where it is narrow is as `agent.cli.columns.aligned` says.
    """
    from agent.cli.columns import aligned

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    clean = [[printable(cell) for cell in row] for row in rows]
    return aligned(header, clean, width, rigid=rigid, keep_end=keep_end, spare=spare)


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Text with its control characters spelled out: what a peer or a model chose must not steer the terminal.

    With `keep_lines`, line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if keep_lines else ""
    return "".join(c if c.isprintable() or c in kept or _joins(c) else repr(c)[1:-1] for c in text)


def _joins(character: str) -> bool:
    """Invisible characters that ordinary text and emoji need: soft hyphens, joiners, spaces."""
    return character in "\u00ad\u200b\u200c\u200d\u2060\u00a0\u202f\u3000" or "\u2000" <= character <= "\u200a"


def styled(text: str, *, err: bool = False, **style: Any) -> str:
    """Colour on a terminal that wants it (https://no-color.org), plain text elsewhere."""
    stream = sys.stderr if err else sys.stdout
    return click.style(text, **style) if stream.isatty() and not os.environ.get("NO_COLOR") else text
