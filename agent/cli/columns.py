"""Tables that fit: columns aligned by what a terminal shows, shortened with an ellipsis where it is narrow. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Final

_GAP: Final = "  "
_MORE: Final = "…"
#: A column that is shortened keeps at least so many cells.
_FLOOR: Final = 10


def cells(text: str) -> int:
    """How many cells of a terminal a text takes (Unicode TR 11; marks that join take none)."""
    return sum(map(_cells_of, text)) if not text.isascii() else len(text)


def _cells_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    """A text in at most `width` cells, with an ellipsis in the place of its end, or of its beginning."""
    if cells(text) <= width:
        return text
    kept: list[str] = []
    room = width - len(_MORE)
    for character in reversed(text) if keep_end else text:
        room -= _cells_of(character)
        if room < 0:
            break
        kept.append(character)
    return _MORE + "".join(reversed(kept)).lstrip(_MORE) if keep_end else "".join(kept).rstrip(" " + _MORE) + _MORE


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    *,
    rigid: Collection[str] = (),
    keep_end: Collection[str] = (),
    spare: Sequence[str] = (),
) -> str:
    """Rows under a header, in lines of at most `width` cells; whole where there is no width.

    The widest columns give way first, but for the `rigid` ones, named by their headers. Where that is not enough the
    `spare` columns are left out, in their order, and the last line says which. `keep_end` are columns, such as of
    keys, of which the end says more than the beginning.
    """
    shown = list(range(len(header)))
    lines = [list(header), *(list(row) for row in rows)]
    natural = [max(cells(line[i]) for line in lines) for i in shown]
    left_out: list[str] = []
    if width is not None:
        least = [natural[i] if header[i] in rigid else min(natural[i], _FLOOR) for i in shown]
        for name in spare:
            if _sum(least[i] for i in shown) <= width:
                break
            shown.remove(list(header).index(name))
            left_out.append(name)
        widths = _fitted([natural[i] for i in shown], [least[i] for i in shown], width)
    else:
        widths = natural
    text = "\n".join(
        _GAP.join(
            _padded(shortened(line[i], fitted, keep_end=header[i] in keep_end), fitted)
            for i, fitted in zip(shown, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    if left_out:
        text += "\n" + shortened(f"(no room for {', '.join(left_out)}; see -o json, or pipe it)", width or 0)
    return text


def _sum(widths: Iterable[int]) -> int:
    """The cells of a line with columns of these widths."""
    return sum(width + len(_GAP) for width in widths) - len(_GAP)


def _fitted(natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths that fit: the widest give way first, to their least; if that is too much still, every column does."""
    widths = list(natural)
    for floor in (least, [1] * len(widths)):
        while _sum(widths) > width:
            wide = [i for i in range(len(widths)) if widths[i] > floor[i]]
            if not wide:
                break
            widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))
