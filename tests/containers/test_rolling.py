"""Six boxes that are restarted one after another, while all the others go on asking."""

from __future__ import annotations

import threading
from typing import Any

import pytest

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

    def run(self) -> None:
        while not self._over.is_set():
            answer = self.box.ask(f"Say {self.asked}", tokens=6, limit=180, resume=True)
            self.asked += 1
            if answer.status_code != 200 or not answer.json()["choices"][0]["message"]["content"]:
                self.failures.append(f"{self.box.name}: {answer.status_code} {answer.text}")

    def stop_asking(self) -> None:
        """No further question; the one that is being answered goes on."""
        self._over.set()


def runs(box: Box) -> bool:
    """Whether it has a job in hand."""
    return int(box.get("/v1/fleet/self")["jobs_running"]) > 0


@pytest.mark.model
def test_a_rolling_restart_of_six_boxes_fails_no_request(network: Any, timed: Timed) -> None:
    with boxes(network, NAMES, holders=HOLDERS, memory="600m") as made:
        for box in made:
            eventually(box.knows_model, f"{box.name} knows the model")
        clients = {box.name: Client(box) for box in made}
        over: list[Client] = []
        for client in clients.values():
            client.start()
        with timed("a rolling restart of six boxes under load"):
            for box in made:
                eventually(lambda box=box: clients[box.name].asked > 0, f"{box.name} was asked")
                last = clients[box.name]
                last.stop_asking()
                # With its last question running, which the drain lets end; what comes after the signal is refused.
                eventually(lambda box=box, last=last: runs(box) or not last.is_alive(), "the question is there")
                box.restart()
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
        assert [failure for client in over for failure in client.failures] == []
        print(f"{sum(client.asked for client in over)} requests, none failed")
