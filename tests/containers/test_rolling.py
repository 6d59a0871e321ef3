"""Six boxes that get a new image one after another, while all the others go on asking."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.containers import engine
from tests.containers.box import Box, boxes, eventually
from tests.containers.conftest import Timed

NAMES = ["till-11", "till-12", "till-13", "jetson-11", "jetson-12", "jetson-13"]
HOLDERS = NAMES[3:]


class Client(threading.Thread):
    """The app of one box: asks it, one question after another; never twice. It stops with its box, as an app does."""

    def __init__(self, box: Box) -> None:
        super().__init__(daemon=True)
        self.box = box
        self.asked = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._begun = threading.Event()

    def run(self) -> None:
        while True:
            self._begun.clear()
            # In this order: whoever sees `_begun` after `_over` was set sees it of the last question or the one before.
            if self._over.is_set():
                return
            try:
                with self.box.streaming(f"Say {self.asked}", 12, limit=180, resume=True) as answer:
                    self._begun.set()
                    answer.rest()
                if answer.error or not answer.done or not answer.text:
                    self.failures.append(f"{self.box.name}: {answer.error} after {answer.text!r}")
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(f"{self.box.name}: {error!r}")
            self.asked += 1

    def stop_asking(self) -> None:
        """No further question; returns when the last one is being answered or has been."""
        self._over.set()
        eventually(lambda: self._begun.is_set() or not self.is_alive(), f"{self.box.name} answers its last question")


@pytest.mark.model
def test_a_rolling_update_of_six_boxes_fails_no_request(network: Any, timed: Timed) -> None:
    with (
        engine.newer(engine.AGENT, engine.SLIM) as newer,
        boxes(network, NAMES, holders=HOLDERS, memory="600m") as made,
    ):
        for box in made:
            eventually(box.knows_model, f"{box.name} knows the model")
        clients = {box.name: Client(box) for box in made}
        over: list[Client] = []
        for client in clients.values():
            client.start()
        with timed("a rolling update of six boxes under load"):
            for box in made:
                eventually(lambda box=box: clients[box.name].asked > 0, f"{box.name} was asked")
                last = clients[box.name]
                # The last question is being answered then, which the drain lets end; what comes later is refused.
                last.stop_asking()
                box.update(newer[box.image])
                over.append(last)
                box.ready()
                eventually(box.knows_model, f"{box.name} knows the model again")
                clients[box.name] = Client(box)
                clients[box.name].start()
        for client in clients.values():
            client.stop_asking()
        over += clients.values()
        for client in over:
            client.join(120)
            assert not client.is_alive()
        wanted = {engine.docker("inspect", "--format", "{{.Id}}", image) for image in newer.values()}
        assert {box.raw.image.id for box in made} == wanted
        assert [failure for client in over for failure in client.failures] == []
        assert all(client.asked for client in over)
        print(f"{sum(client.asked for client in over)} requests, none failed")
