"""`shoal boxes`: every box of the fleet in one table, from the running agent or from the disk."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from agent.cli.client import AgentClient, ClientError
from agent.cli.columns import shortened
from agent.cli.command import Place, box_command
from agent.cli.output import print_json, printable, table

_HEADER: Final = ("NAME", "LABELS", "HARDWARE", "MODELS", "LOAD", "SEEN", "VERSION", "STANDING", "USED", "GIVEN", "END")
#: What a narrow terminal does without, first to last, and what is not cut.
_SPARE: Final = ("GIVEN", "USED", "VERSION", "HARDWARE", "LABELS", "LOAD", "MODELS")
_RIGID: Final = ("SEEN", "END")
_PAUSE: Final = 1.0
#: Cursor home; erase to the end of the line; erase to the end of the screen (ECMA-48).
_HOME, _EOL, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True)
class KnownFleet:
    """The fleet and its boxes as GET /v1/fleet/boxes has them. `source` is `agent` or `disk`."""

    fleet: dict[str, Any]
    boxes: list[dict[str, Any]]
    source: str


def known_fleet(place: Place, client: AgentClient | None = None) -> KnownFleet:
    """What a box knows of its fleet; raises ClientError, `no_fleet` where it belongs to none."""
    try:
        client = client or place.client()
        answer = client.get("/v1/fleet/boxes")
        with client.understood():
            found, boxes = answer["fleet"], [dict(box) for box in answer["boxes"]]
    except ClientError as error:
        if error.code != "agent_unreachable" or place.state_dir is None or not place.state_dir.is_dir():
            raise
        return _on_disk(place)
    if found is None:
        raise ClientError("no_fleet", "this box belongs to no fleet yet; see `shoal fleet init`, `shoal join`")
    return KnownFleet(dict(found), boxes, "agent")


def _on_disk(place: Place) -> KnownFleet:
    from agent.fleet_facts import box_facts, fleet_facts
    from fleet.document.replica import Replica
    from fleet.errors import IdentityError

    document = place.access().read(facts=True)
    replica = Replica(document.fleet, document.ops)
    try:
        own = place.identity().peer_id
    except IdentityError:
        own = ""
    # A disk says nothing of who is there now, not even of the box that it belongs to.
    boxes = [{**box, "connected": None, "last_seen_s": None} for box in box_facts(replica, own, {})]
    return KnownFleet(dict(fleet_facts(replica)), boxes, "disk")


@click.command()
@click.option("--watch", is_flag=True, help="show it again whenever something changes, until Ctrl-C")
@box_command
def boxes(place: Place, form: str, watch: bool) -> None:
    """List the boxes of the fleet: what they are, what they hold, how they are, what they gave and used."""
    if watch:
        _watch(place, form)
        return
    _show(known_fleet(place), form)


def _show(known: KnownFleet, form: str) -> None:
    if form == "json":
        print_json({"source": known.source, "fleet": known.fleet, "boxes": known.boxes})
        return
    click.echo(_text(known))


def _watch(place: Place, form: str) -> None:
    """Ask every second and print what changed. On a terminal the table is drawn over itself, without a flicker."""
    on_terminal = form == "text" and sys.stdout.isatty()
    shown = ""
    never = threading.Event()
    client: AgentClient | None = None
    try:
        while True:
            client = client or (place.client() if place.url is not None else None)
            known = known_fleet(place, client)
            text = _stable(known) if form == "json" else _text(known)
            if text != shown:
                if on_terminal:
                    click.clear() if not shown else None
                    click.echo(_HOME + "".join(f"{line}{_EOL}\n" for line in _on_one_page(text)) + _REST, nl=False)
                else:
                    _show(known, form)
                sys.stdout.flush()
                shown = text
            never.wait(_PAUSE)
    except KeyboardInterrupt:
        return


def _stable(known: KnownFleet) -> str:
    """What is compared to tell whether something has changed: all but what changes with time alone."""
    boxes = [{key: value for key, value in box.items() if key != "last_seen_s"} for box in known.boxes]
    return json.dumps([known.source, known.fleet, boxes])


def _on_one_page(text: str) -> list[str]:
    """The lines that a terminal can show at once: what is drawn over itself must neither wrap nor scroll."""
    width, height = shutil.get_terminal_size()
    lines = [shortened(line, width) for line in text.split("\n")]
    if len(lines) < height:
        return lines
    fit = max(height - 2, 1)
    return [*lines[:fit], shortened(f"({len(lines) - fit} lines more; make this window taller)", width)]


def _text(known: KnownFleet) -> str:
    refused = set(known.fleet.get("refused_by", ()))
    rows = [
        _row(box, bool(refused)) for box in sorted(known.boxes, key=lambda box: (not box["self"], str(box["name"])))
    ]
    lines = [table(_HEADER, rows, rigid=_RIGID, spare=_SPARE)]
    names = {str(box["peer_id"]): str(box["name"]) for box in known.boxes}
    lines += _notes(known, refused, names)
    if known.source == "disk":
        lines.append("(read from the disk; the agent does not run, so nothing is known of load and links)")
    return "\n".join(lines)


def _notes(known: KnownFleet, refused: set[str], names: Mapping[str, str]) -> list[str]:
    """What the table cannot say: boxes that are kept out, and that this one is."""
    from agent.claims import late_text

    lines = []
    if refused:
        own = next((str(box["peer_id"]) for box in known.boxes if box["self"]), "this box's key")
        lines.append(
            f"! {', '.join(sorted(names.get(one, one) for one in refused))}: every box that answers refuses this one"
        )
        lines.append(
            "  it was revoked or denied, its claim of an invite came too late, or they were off when it came; this list"
            " may be long out of date"
        )
        lines.append(f"  -> on an admin's box: shoal firewall explain {own}; see also: shoal doctor")
    for claim in known.fleet.get("lost_claims", ()):
        takers = [names.get(one, one) for one in claim["taken_by"]]
        lines.append(f"! {claim['key']} is kept out: {late_text(claim['invite'], takers)}")
        lines.append(f"  -> shoal admit {claim['key']}, or a new token for it: shoal invite")
    return [printable(line) for line in lines]


def _row(box: Mapping[str, Any], refused: bool = False) -> tuple[str, ...]:
    labels = ",".join(f"{name}={value}" for name, value in sorted(box["labels"].items()))
    return (
        str(box["name"]) + (" *" if box["self"] else ""),
        labels or "-",
        _hardware(box["hardware"]),
        ", ".join(_model(model) for model in box["models"]) or "-",
        _load(box),
        _seen(box),
        str(box["version"] or "-"),
        f"{box['standing']} here, refused by the others" if refused and box["self"] else str(box["standing"]),
        _account(box["used"]),
        _account(box["given"]),
        "…" + str(box["peer_id"])[-8:],
    )


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [str(hardware["arch"] or "")]
    if hardware["cpus"]:
        parts.append(f"{hardware['cpus']} cpu")
    if hardware["memory"]:
        parts.append(f"{hardware['memory'] / (1 << 30):.0f} GiB")
    return " ".join([*filter(None, parts), str(hardware["gpu"] or "")]).strip() or "-"


def _model(model: Mapping[str, Any]) -> str:
    text = str(model["name"] or str(model["hash"])[:19])
    if model["complete"] < 1:
        return f"{text} ({model['complete']:.0%} here)"
    return f"{text} ({model['decode_rate']:.0f} tok/s)" if model["decode_rate"] else text


def _load(box: Mapping[str, Any]) -> str:
    if box["jobs"] is None:
        return "-"
    return f"{box['jobs']} jobs, cpu {box['cpu']:.0%}, mem {box['memory_used']:.0%}"


def _seen(box: Mapping[str, Any]) -> str:
    """Coarse, so that a table that is watched does not change by itself."""
    age = box["last_seen_s"]
    if age is None:
        return "-" if box["connected"] is None else "never"
    if age < 15:
        return "now" if box["connected"] else "a moment ago"
    return f"{age // 60:.0f} min ago" if age >= 60 else "under 1 min ago"


def _account(totals: Mapping[str, Any]) -> str:
    return f"{totals['jobs']} jobs, {totals['tokens']} tok" if totals["jobs"] else "-"
