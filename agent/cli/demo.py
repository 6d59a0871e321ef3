"""`shoal demo`: a box without a model answers from one that has it, loses it in mid-sentence, and gets it back."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.demo_fleet import MODEL_NAME, Box, DemoError, boxes, find_model
from agent.cli.output import print_json

QUESTION: Final = "Explain in three sentences what a lighthouse is for."
LONG_QUESTION: Final = "Write a very long story about a lighthouse keeper and the sea."
MAX_TOKENS: Final = 96
#: The provider is killed after this many tokens.
KILL_AFTER: Final = 8
#: How long the next answer may take once the provider is back (seconds).
RECOVERY_LIMIT: Final = 30.0


@dataclass
class Measured:
    """One streamed answer: times in milliseconds, rate in tokens per second after the first."""

    text: str = ""
    served_by: str = ""
    model: str = ""
    route: tuple[str, ...] = ()
    ttft_ms: float = 0.0
    tok_s: float = 0.0
    tokens: int = 0


class Teller:
    """Tells what is going on: on standard output for people, on standard error when that is kept for JSON."""

    def __init__(self, steps: int, as_json: bool) -> None:
        self._steps = steps
        self._step = 0
        self._as_json = as_json
        self._ticking = False
        self._last_second = -1

    def step(self, text: str) -> None:
        """The next step begins."""
        self._step += 1
        self._end_tick()
        self.say(f"\n[{self._step}/{self._steps}] {text}")

    def say(self, text: str, newline: bool = True) -> None:
        """Tell something."""
        self._end_tick()
        click.echo(text, nl=newline, err=self._as_json)

    def tick(self, what: str, waited: float) -> None:
        """A line that counts seconds on a terminal; elsewhere a line every five."""
        second = int(waited)
        if second == self._last_second or second == 0:
            return
        self._last_second = second
        stream = sys.stderr if self._as_json else sys.stdout
        if stream.isatty():
            click.echo(f"\r      {what} … {second} s", nl=False, err=self._as_json)
            self._ticking = True
        elif second % 5 == 0:
            click.echo(f"      {what} … {second} s", err=self._as_json)

    def _end_tick(self) -> None:
        if self._ticking:
            click.echo("", err=self._as_json)
            self._ticking = False


def ask(box: Box, model: str, question: str, max_tokens: int, on_text: Callable[[str, int], None]) -> Measured:
    """Ask through a box's OpenAI endpoint; `on_text(piece, pieces so far)` sees the answer as it comes.

    Raises ClientError, also in mid-stream; what was measured until then is lost with it.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found, began, first, last, pieces = Measured(), time.monotonic(), 0.0, 0.0, 0
    with box.client.stream("/v1/chat/completions", body, {}) as events:
        for event in events:
            if "served_by" in event.get("shoal", {}):
                found.served_by, found.route = event["shoal"]["served_by"], tuple(event["shoal"]["route"])
                found.model = event["model"]
            if event.get("usage"):
                found.tokens = event["usage"]["completion_tokens"]
            piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if piece:
                last = time.monotonic()
                first = first or last
                pieces += 1
                found.text += piece
                on_text(piece, pieces)
    found.ttft_ms = round((first - began) * 1000, 1)
    found.tok_s = round((found.tokens - 1) / (last - first), 1) if found.tokens > 1 and last > first else 0.0
    return found


def _interrupt(sensor: Box, jetson: Box, teller: Teller) -> float:
    """Kill the provider in mid-stream; milliseconds until the client has the error."""
    killed = 0.0

    def on_text(piece: str, pieces: int) -> None:
        nonlocal killed
        teller.say(piece, newline=False)
        if pieces == KILL_AFTER:
            teller.say("  << killed", newline=False)
            jetson.kill()
            killed = time.monotonic()

    try:
        ask(sensor, MODEL_NAME, LONG_QUESTION, 1500, on_text)
    except ClientError as error:
        if not killed:
            raise DemoError(f"the answer failed before the provider was killed: {error.message}") from error
        after = (time.monotonic() - killed) * 1000
        teller.say(f"\n      after {after:.0f} ms the client got: {error.code}: {error.message}")
        if error.code != "interrupted":
            raise DemoError(f"expected the error 'interrupted', got {error.code!r}") from error
        return round(after, 1)
    raise DemoError("the stream ended as if nothing had happened")


def _recover(sensor: Box, jetson: Box, teller: Teller) -> float:
    """Start the provider again; milliseconds from its being ready to the consumer's next whole answer."""
    jetson.start()
    jetson.wait("loading the model", jetson.is_ready, teller.tick)
    ready = time.monotonic()
    while True:
        try:
            answer = ask(sensor, MODEL_NAME, QUESTION, 16, lambda piece, pieces: None)
            break
        except ClientError as error:
            if time.monotonic() - ready > RECOVERY_LIMIT:
                raise DemoError(f"{sensor.name} did not find {jetson.name} again: {error.message}") from error
            time.sleep(0.05)
    after = (time.monotonic() - ready) * 1000
    teller.say(f"      {answer.served_by} answered {after:.0f} ms after it was ready; {sensor.name} was not touched")
    return round(after, 1)


def run_demo(model: Path, teller: Teller) -> dict[str, Any]:
    """The whole demo; returns what `--json` prints. Raises DemoError or ClientError if any of it did not happen."""
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder:
        holdings = {"sensor-1": None, "pos-1": None, "jetson-1": model}
        with boxes(Path(folder), holdings) as (sensor, pos, jetson):
            teller.step("starting three boxes: sensor-1 and pos-1 without a model, jetson-1 with SmolLM2-135M")
            for box in (sensor, pos, jetson):
                box.start()
            for box in (sensor, pos, jetson):
                box.wait(f"starting {box.name}", box.is_ready, teller.tick)
                teller.say(f"      {box.name:<9} http://127.0.0.1:{box.http_port}/v1   {box.identity.peer_id}")

            teller.step("letting them find each other")
            for box in (sensor, pos):
                box.wait(f"{box.name} looks for the model", partial(box.can_ask, MODEL_NAME), teller.tick)
            peers = [f"{p['name']} {p['rtt_ms'] or '?'} ms" for p in sensor.client.get("/v1/fleet/peers")["peers"]]
            teller.say(f"      sensor-1 sees {', '.join(peers)} over Noise-encrypted, authorised connections")

            teller.step(f"asking sensor-1, which has no model: {QUESTION}")
            teller.say("      ", newline=False)
            borrowed = ask(sensor, MODEL_NAME, QUESTION, MAX_TOKENS, lambda piece, _: teller.say(piece, newline=False))
            teller.say(f"\n      served by {borrowed.served_by}, because {'; '.join(borrowed.route)}")
            if borrowed.served_by != jetson.name or not borrowed.text.strip():
                raise DemoError(
                    f"expected an answer from {jetson.name}, got {borrowed.text!r} from {borrowed.served_by}"
                )

            teller.step("asking jetson-1 itself the same")
            local = ask(jetson, MODEL_NAME, QUESTION, MAX_TOKENS, lambda piece, _: None)
            teller.say("                  first token   tok/s")
            for box, measured in ((sensor, borrowed), (jetson, local)):
                figures = f"{measured.ttft_ms:8.1f} ms {measured.tok_s:7.1f}"
                teller.say(f"      {box.name:<9}   {figures}   served by {measured.served_by}")

            teller.step("killing jetson-1 in mid-sentence")
            teller.say("      ", newline=False)
            interrupted = _interrupt(sensor, jetson, teller)

            teller.step("starting jetson-1 again")
            recovered = _recover(sensor, jetson, teller)
    return {
        "asked": sensor.name,
        "served_by": borrowed.served_by,
        "model": borrowed.model,
        "text": borrowed.text,
        "ttft_ms": borrowed.ttft_ms,
        "tok_s": borrowed.tok_s,
        "local_ttft_ms": local.ttft_ms,
        "local_tok_s": local.tok_s,
        "interrupted_after_ms": interrupted,
        "recovered_after_ms": recovered,
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of standard output")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", help="the same as --json")
@click.option("--model", type=click.Path(path_type=Path), help="a GGUF file to use  [default: SmolLM2-135M]")
@click.option("--mqtt", is_flag=True, help="ask over an MQTT broker instead, which this starts (mosquitto)")
@click.option("--keep", is_flag=True, help="with --mqtt: go on until interrupted, so that you can ask yourself")
def demo(as_json: bool, form: str, model: Path | None, mqtt: bool, keep: bool) -> None:
    """Watch one box borrow another's model, on this machine, with real processes and a real model."""
    as_json = as_json or form == "json"
    if keep and not mqtt:
        raise click.UsageError("--keep goes with --mqtt")
    teller = Teller(4 if mqtt else 6, as_json)
    try:
        if model is not None and not model.is_file():
            raise DemoError(f"there is no model file {model}")
        if mqtt:
            from agent.cli.demo_mqtt import run_mqtt_demo

            result = run_mqtt_demo(model or find_model(), teller, keep)
        else:
            result = run_demo(model or find_model(), teller)
    except (DemoError, ClientError) as error:
        message = error.message if isinstance(error, ClientError) else str(error)
        if as_json:
            print_json({"error": {"code": "demo", "message": message}})
        click.echo(f"\nshoal demo: {message}", err=True)
        sys.exit(1)
    if as_json:
        print_json(result)
    else:
        teller.say("\nall of it happened as it should")
