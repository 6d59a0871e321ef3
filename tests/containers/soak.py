"""A fleet of containers for some minutes: boxes join by token, borrow, and are killed, restarted and held still.

    python -m tests.containers.soak --nodes 25 --minutes 5

Prints how long the fleet took to be of one mind, how many requests failed, and what each box took of memory and CPU.
Exit code 0 only if it became so, before and after, and no request failed. A client asks a box only while nobody means
to end that very box, as an app ends with its box; what happens to all the others is the boxes' own business.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx

from tests.containers import engine
from tests.containers.box import KEY, MODEL, Box, document_of, eventually
from tests.harness import Fleet, peer_id_of

#: One box in so many holds the model.
_HOLDERS: Final = 5
_CLIENTS: Final = 4
_STILL: Final = 4.0
#: Seconds from one fault to the next.
_CALM: Final = 6.0


class Soak:
    """The boxes, who is busy with which, and what went wrong."""

    def __init__(self, boxes: Sequence[Box], holders: Sequence[Box], seed: int) -> None:
        self.boxes = boxes
        self.holders = holders
        self.over = threading.Event()
        self.asked = 0
        self.failures: list[str] = []
        self.faults: dict[str, int] = {}
        self._random = random.Random(seed)
        self._lock = threading.Condition()
        self._at: dict[str, int] = {box.name: 0 for box in boxes}
        self._ended: set[str] = set()

    def ask(self) -> None:
        """One client: a question to a box that stands, again and again."""
        while not self.over.is_set():
            with self._lock:
                box = self._random.choice([box for box in self.boxes if box.name not in self._ended])
                self._at[box.name] += 1
            try:
                answer = httpx.post(
                    f"{box.url}/v1/chat/completions",
                    json={"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
                    # A box that fails after its first token is gone on for by another one, within the fleet.
                    headers={"Authorization": f"Bearer {KEY}", "X-Shoal-On-Interrupt": "resume"},
                    timeout=180,
                )
                failed = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            except httpx.HTTPError as error:
                failed = repr(error)
            with self._lock:
                self._at[box.name] -= 1
                self.asked += 1
                if failed:
                    self.failures.append(f"{box.name}: {failed}")
                    print(f"FAILED {self.failures[-1]}", flush=True)
                self._lock.notify_all()

    def churn(self) -> None:
        """One fault after another; two boxes that hold the model are left alone."""
        while not self.over.wait(_CALM):
            box = self._random.choice([box for box in self.boxes if box not in self.holders[:2]])
            what = self._random.choice(["kill", "restart", "pause"])
            with self._lock:
                self._ended.add(box.name)
                self._lock.wait_for(lambda box=box: self._at[box.name] == 0, timeout=180)
            self.faults[what] = self.faults.get(what, 0) + 1
            if what == "kill":
                box.kill()
                box.again().ready()
            elif what == "restart":
                box.restart()
                box.ready()
            else:
                raw = box.raw
                raw.pause()
                time.sleep(_STILL)
                raw.unpause()
            eventually(box.knows_model, f"{box.name} knows the model again")
            with self._lock:
                self._ended.discard(box.name)


def of_one_mind(boxes: Sequence[Box]) -> bool:
    """Whether all have the same document, and every box is a member in it."""
    if len({box.governance() for box in boxes}) != 1:
        return False
    return len(boxes[0].get("/v1/fleet/boxes")["boxes"]) == len(boxes)


def used(box: Box) -> tuple[float, int]:
    """CPU seconds of the container, and bytes that its agent and its engine have resident."""
    facts = box.get("/v1/fleet/self")
    stats = engine.client().api.stats(box.raw.id, stream=False, one_shot=True)
    resident = facts["rss_bytes"] + sum(model["rss_bytes"] or 0 for model in facts["models"])
    return stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, resident


def started(nodes: int, network: Any) -> tuple[list[Box], list[Box]]:
    """A founder, and boxes that join by its token; every fifth holds the model."""
    fleet = Fleet("soak")
    names = [f"soak-{number:02}" for number in range(1, nodes + 1)]
    founder = Box(names[0], network, document=document_of(fleet, names[:1]), holds=True, memory="700m").start().ready()
    token = fleet.invite(f"/dns4/{founder.alias}/tcp/4210/p2p/{peer_id_of(names[0])}", uses=nodes)
    founder.offer(token.op)
    boxes = [founder]
    for index, name in enumerate(names[1:], 1):
        holds = index % _HOLDERS == 0
        env = {"SHOAL_JOIN_TOKEN": token.text()}
        boxes.append(Box(name, network, holds=holds, memory="700m" if holds else "300m", env=env).start())
    return boxes, [box for index, box in enumerate(boxes) if index % _HOLDERS == 0]


def soaked(nodes: int, minutes: float, seed: int) -> bool:
    """Run it; whether nothing was lost."""
    from testcontainers.core.network import Network

    network = Network(docker_network_kw={"labels": dict(engine.LABELS)}).create()
    limit = 60.0 + 15.0 * nodes
    began = time.monotonic()
    boxes, holders = started(nodes, network)
    print(f"{nodes} containers started in {time.monotonic() - began:.0f} s, {len(holders)} hold {MODEL}", flush=True)
    eventually(lambda: of_one_mind(boxes), "all boxes are members, with one document", limit)
    print(f"all members, one document on all: {time.monotonic() - began:.0f} s after the first start", flush=True)
    for box in boxes:
        eventually(box.knows_model, f"{box.name} knows the model", limit)
    print(f"every box can be asked for the model: {time.monotonic() - began:.0f} s", flush=True)

    soak = Soak(boxes, holders, seed)
    before, at = {box.name: used(box)[0] for box in boxes}, time.monotonic()
    threads = [threading.Thread(target=soak.ask) for _ in range(_CLIENTS)] + [threading.Thread(target=soak.churn)]
    for thread in threads:
        thread.start()
    soak.over.wait(minutes * 60)
    soak.over.set()
    for thread in threads:
        thread.join()
    wall = time.monotonic() - at
    settled = eventually(lambda: of_one_mind(boxes), "one document again", limit)
    faults = ", ".join(f"{count} x {what}" for what, count in sorted(soak.faults.items())) or "none"
    print(f"{soak.asked} requests in {wall:.0f} s, {len(soak.failures)} failed; faults: {faults}")
    print(f"one document on all again: {settled:.1f} s after the last fault\n")
    print(f"{'BOX':<10}{'HOLDS':<8}{'RSS MB':>8}{'CPU %':>8}   (CPU since its last start, of one core)")
    for box in boxes:
        seconds, resident = used(box)
        share = max(0.0, seconds - before[box.name] if seconds >= before[box.name] else seconds) / wall * 100
        print(f"{box.name:<10}{'model' if box in holders else '-':<8}{resident / 1e6:>8.0f}{share:>8.1f}")
    return not soak.failures


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=25)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if why := engine.missing():
        print(f"soak: {why}", file=sys.stderr)
        return 1
    engine.sweep_dead()
    try:
        return 0 if soaked(arguments.nodes, arguments.minutes, arguments.seed) else 1
    finally:
        engine.sweep(f"{engine.RUN_LABEL}={engine.RUN}")


if __name__ == "__main__":
    sys.exit(main())
