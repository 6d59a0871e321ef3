"""`shoal demo --mqtt`: what is published to a broker is answered by a box without a model, which borrows one."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.cli.demo_fleet import MODEL_NAME, DemoError, boxes, die_with_parent, free_port

if TYPE_CHECKING:
    from agent.cli.demo import Teller

#: The fleet's name, which is the level of topics in the documentation.
FLEET: Final = "shops"
QUESTION: Final = "Is 82 degrees normal for a fridge compressor?"
#: The port that mosquitto's clients take where none is named.
DEFAULT_PORT: Final = 1883
#: Seconds that an answer may take.
LIMIT: Final = 120


def run_mqtt_demo(model: Path, teller: Teller, keep: bool) -> dict[str, Any]:
    """The whole of it; returns what `--json` prints. With `keep` it goes on until interrupted. Raises DemoError."""
    tools = {name: _tool(name) for name in ("mosquitto", "mosquitto_pub", "mosquitto_sub")}
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder:
        teller.step("starting an MQTT broker (mosquitto), open to this machine alone")
        with _broker(tools["mosquitto"], Path(folder)) as port:
            teller.say(f"      127.0.0.1:{port}")
            holdings: dict[str, Path | None] = {"till-1": None, "jetson-1": model}
            url = f"mqtt://127.0.0.1:{port}"
            with boxes(Path(folder), holdings, fleet=FLEET, brokers={"till-1": url}) as (till, jetson):
                teller.step("starting two boxes: till-1 with the broker and no model, jetson-1 with SmolLM2-135M")
                for box in (till, jetson):
                    box.start()
                for box in (till, jetson):
                    box.wait(f"starting {box.name}", box.is_ready, teller.tick)
                till.wait("till-1 looks for the model", partial(till.can_ask, MODEL_NAME), teller.tick)
                till.wait("till-1 connects to the broker", partial(_connected, till.client), teller.tick)

                topic = f"shoal/v1/{FLEET}/infer/request"
                teller.step("asking, as anybody can who has mosquitto's clients:")
                where = "" if port == DEFAULT_PORT else f"-p {port} "
                teller.say(f"      mosquitto_sub {where}-t 'shoal/v1/+/+/infer/#' -v &")
                teller.say(f"      mosquitto_pub {where}-t {topic} -m '{QUESTION}'")
                found = _ask(tools, port, topic, QUESTION)
                for words, payload in found.items():
                    teller.say(f"      {words}: {json.dumps(payload, ensure_ascii=False)[:400]}")

                teller.step("the same as a program does it, streamed, and called by a name of its own")
                request = {"v": 1, "job": "demo-1", "stream": True, "input": {"prompt": QUESTION}}
                streamed = _ask(tools, port, topic, json.dumps(request))
                result = streamed["result"]
                teller.say(f"      served by {result['served_by']} in {result['timing_ms']['total']:.0f} ms")
                if keep:
                    teller.say("\nit goes on until you press Ctrl-C; ask what you like")
                    _until_interrupted()
    return {
        "asked": "till-1",
        "served_by": found["result"]["served_by"],
        "accepted_by": found["accepted"]["by"],
        "text": found["result"]["output"]["text"],
        "total_ms": found["result"]["timing_ms"]["total"],
        "job": result["job"],
    }


def _tool(name: str) -> str:
    # Debian has the broker where the PATH of plain users does not lead.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise DemoError(f"{name} is not installed; run: sudo apt-get install mosquitto mosquitto-clients")
    return found


@contextmanager
def _broker(binary: str, folder: Path) -> Iterator[int]:
    """A broker on loopback, as the user who runs the demo."""
    port = free_port(DEFAULT_PORT)
    config = folder / "mosquitto.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    config.write_text(f"user {user}\nset_tcp_nodelay true\nlistener {port} 127.0.0.1\nallow_anonymous true\n")
    log = (folder / "mosquitto.log").open("wb")
    process = subprocess.Popen(
        [binary, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()
        log.close()


def _connected(client: Any) -> bool:
    return bool(client.get("/v1/fleet/self")["mqtt"]["state"] == "connected")


def _ask(tools: dict[str, str], port: int, topic: str, payload: str) -> dict[str, Any]:
    """Publish a request and read what comes of it, with mosquitto's own clients; the payloads by their last level.

    Raises DemoError for an error, and where there is no result within LIMIT seconds.
    """
    listen = [tools["mosquitto_sub"], "-p", str(port), "-t", "shoal/v1/+/+/infer/#", "-v", "-W", str(LIMIT)]
    found: dict[str, Any] = {}
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent) as listening:
        try:
            time.sleep(0.5)  # it does not say when it has subscribed
            subprocess.run([tools["mosquitto_pub"], "-p", str(port), "-q", "1", "-t", topic, "-m", payload], check=True)
            assert listening.stdout is not None
            for line in listening.stdout:
                where, _, text = line.partition(" ")
                words = where.rsplit("/", 1)[1]
                found[words] = json.loads(text)
                if words == "error":
                    raise DemoError(f"the answer is an error: {found[words]['code']}: {found[words]['message']}")
                if words == "result":
                    return found
        finally:
            listening.terminate()
    raise DemoError(f"there was no answer within {LIMIT} s; there was: {', '.join(found) or 'nothing'}")


def _until_interrupted() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        return
