"""How far a transfer is, in one line, and watching one until it is over."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from agent.cli.client import AgentClient, ClientError
from agent.cli.output import printable

#: Seconds between two looks: a person reads no faster.
LOOK: Final = 0.25
_BAR: Final = 24
_MB: Final = 1e6


def line(transfer: Mapping[str, Any], width: int | None = None) -> str:
    """A transfer in one line of at most `width` cells: bar, blocks, MB/s, sources, ETA, and what it waits for."""
    at = transfer["progress"]
    size, done = int(at.get("size") or 0), int(at.get("bytes") or 0)
    part = min(1.0, done / size) if size else 0.0
    filled = round(part * _BAR)
    words = [f"[{'#' * filled}{'.' * (_BAR - filled)}]", f"{part:4.0%}"]
    if "blocks_total" in at:
        words.append(f"{at['blocks']}/{at['blocks_total']} blocks")
    elif size:
        words.append(f"{done / _MB:.0f}/{size / _MB:.0f} MB")
    if transfer["state"] == "running":
        words.append(f"{float(at.get('rate') or 0) / _MB:.1f} MB/s")
        if "sources" in at:
            sending = sum(source["state"] == "sending" for source in at["sources"])
            words.append(f"{sending} source{'' if sending == 1 else 's'}")
        if at.get("eta") is not None:
            words.append(f"ETA {seconds(float(at['eta']))}")
        if at.get("phase") not in ("fetching", None):
            words.append(str(at["phase"]) + (f": {at['reason']}" if at.get("reason") else ""))
    else:
        words.append(transfer["state"] + (f": {transfer['error']}" if transfer["error"] else ""))
    text = printable("  ".join([str(transfer["model"]), *words]))
    return text if width is None or len(text) <= width else text[: max(0, width - 1)] + "…"


def seconds(amount: float) -> str:
    """A time for people: 12 s, 3:05, 1:02:03."""
    whole = round(amount)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Screen:
    """One or more lines on standard error that are drawn over again; where that is no terminal, a line when it says
    something new."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = 0
        self._said = ""

    @property
    def width(self) -> int | None:
        """Cells of a line, None where there is no end to it."""
        return shutil.get_terminal_size().columns - 1 if self._live else None

    def draw(self, lines: Iterable[str], *, said: str) -> None:
        """Draw these lines; `said` is what makes it worth a line where nothing can be drawn over."""
        if self._live:
            up = f"\033[{self._drawn}A" if self._drawn else ""
            shown = list(lines)
            click.echo(up + "".join(f"\r\033[K{one}\n" for one in shown) + "\033[J", err=True, nl=False)
            self._drawn = len(shown)
        elif said != self._said:
            self._said = said
            for one in lines:
                click.echo(one, err=True)


def transfers_of(client: AgentClient) -> list[dict[str, Any]]:
    """Every transfer that the agent remembers; raises ClientError."""
    answer = client.get("/v1/fleet/transfers")
    with client.understood():
        found: list[dict[str, Any]] = list(answer["transfers"])
        for one in found:
            line(one)  # what cannot be shown is no answer
        return found


def watch(client: AgentClient, transfer: str, form: str) -> dict[str, Any]:
    """Show a transfer until it is over, and give it; raises ClientError where it failed, or is not known any more."""
    screen = Screen()
    while True:
        found = next((one for one in transfers_of(client) if one["id"] == transfer), None)
        if found is None:
            raise ClientError("interrupted", "the agent was restarted meanwhile; give the same command again to go on")
        if form != "json":
            screen.draw([line(found, screen.width)], said=f"{found['progress'].get('phase')} {found['state']}")
        if found["state"] == "failed":
            raise ClientError("model_source" if found["kind"] == "add" else "failed", str(found["error"]))
        if found["state"] != "running":
            return found
        time.sleep(LOOK)
