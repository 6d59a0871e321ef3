"""Ranges of numbers as GBNF, digit by digit. Pure."""

from __future__ import annotations

from agent.engine.structure.notation import literal

#: Digits of an integer without bounds, and of a fraction.
DIGITS = 16
FRACTION = 15


def integers(low: int | None, high: int | None) -> list[str]:
    """Alternatives that together are the integers from `low` to `high`; none where there are none."""
    widest = max(DIGITS, *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None), 0)
    most = 10**widest - 1
    low, high = -most if low is None else low, most if high is None else high
    options: list[str] = []
    if low < 0 and low <= high:
        options += [f'"-" {one}' for one in _naturals(max(1, -high), -low)]
    if high >= 0 and low <= high:
        options += _naturals(max(0, low), high)
    return options


def numbers(low: int | None, high: int | None, *, above: bool = False, below: bool = False) -> list[str]:
    """Alternatives that together are the decimal numbers between two whole ones, with up to 15 digits of a fraction.

    `above` and `below` leave the bound itself out. There are no exponents.
    """
    options: list[str] = []
    if high is None or high > 0 or (high == 0 and not below):
        start = max(0, low or 0) if low is not None else 0
        options += _magnitudes(start, high, above and low is not None and low >= 0, below)
    if low is None or low < 0:
        start = max(0, -high) if high is not None else 0
        # Minus nought is nought, which is among the others or left out.
        without = below if high is not None and high < 0 else start == 0
        end = -low if low is not None else None
        options += [f'"-" {one}' for one in _magnitudes(start, end, without, above and low is not None)]
    return options


def _magnitudes(low: int, high: int | None, above: bool, below: bool) -> list[str]:
    any_fraction = f'( "." [0-9]{{1,{FRACTION}}} )?'
    no_fraction = f'( "." "0"{{1,{FRACTION}}} )?'
    some_fraction = f'"." "0"{{0,{FRACTION - 1}}} [1-9] [0-9]{{0,{FRACTION}}}'
    options: list[str] = []
    first = low
    if above and (high is None or low < high):
        options.append(f"{literal(str(low))} {some_fraction}")
        first = low + 1
    last = 10 ** max(DIGITS, len(str(low)) + 1) if high is None else high
    if first < last:
        options.append(f"( {' | '.join(_naturals(first, last - 1))} ) {any_fraction}")
    if high is not None and not below and not (above and low == high) and low <= high:
        options.append(f"{literal(str(high))} {no_fraction}")
    return options


def _naturals(low: int, high: int) -> list[str]:
    options: list[str] = []
    for size in range(len(str(low)), len(str(high)) + 1):
        start = max(low, 10 ** (size - 1) if size > 1 else 0)
        end = min(high, 10**size - 1)
        if start <= end:
            options += _same_length(str(start), str(end))
    return options


def _same_length(low: str, high: str) -> list[str]:
    """Numbers of the same count of digits."""
    size = len(low)
    if low == high:
        return [literal(low)]
    if low == "0" * size and high == "9" * size:
        return [f"[0-9]{{{size}}}"]
    if size == 1:
        return [f"[{low}-{high}]"]
    first, last = low[0], high[0]
    if first == last:
        return [f"{literal(first)} {rest}" for rest in _same_length(low[1:], high[1:])]
    options: list[str] = []
    start, end = int(first), int(last)
    if low[1:] != "0" * (size - 1):
        options += [f"{literal(first)} {rest}" for rest in _same_length(low[1:], "9" * (size - 1))]
        start += 1
    if high[1:] != "9" * (size - 1):
        end -= 1
        tail = [f"{literal(last)} {rest}" for rest in _same_length("0" * (size - 1), high[1:])]
    else:
        tail = []
    if start <= end:
        options.append(f"[{start}-{end}] [0-9]{{{size - 1}}}")
    return options + tail
