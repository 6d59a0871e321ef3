"""What commands print: aligned text for people, one JSON object for programs, errors with their remedy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
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


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def fail(form: str, code: str, message: str, details: Mapping[str, Any] | None = None) -> NoReturn:
    """Report an error and end with its exit code: JSON on standard output, or text on standard error."""
    if form == "json":
        print_json({"error": {"code": code, "message": message, "details": dict(details or {})}})
    else:
        click.echo(f"shoal: {message}", err=True)
    sys.exit(exit_code(code))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, columns aligned; the last column is not padded."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)) + "  " + line[-1]
        if len(line) > 1
        else line[0]
        for line in lines
    )


def styled(text: str, **style: Any) -> str:
    """Colour on a terminal that wants it (https://no-color.org), plain text elsewhere."""
    return click.style(text, **style) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
