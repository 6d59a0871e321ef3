"""`shoal chat`: one question, the answer as it comes, and who gave it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import click

from agent.cli.client import AgentClient, ClientError, EventStream
from agent.cli.command import Place, box_command
from agent.cli.output import print_json, printable, styled

#: Bytes read from standard input; the agent's own limit for a prompt is the same.
MAX_PROMPT: Final = 1024 * 1024
#: Seconds that an agent may take to dial a box again that has broken off, and between two looks at what came of it.
_REDIAL: Final = 3.0
_LOOK: Final = 0.1


@dataclass
class Answer:
    """What came back, as far as it came. Times in milliseconds as seen here; `tok_s` counts after the first token."""

    model: str
    text: str = ""
    shoal: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    resumed_from: list[str] = field(default_factory=list)
    ttft_ms: float | None = None
    tok_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `-o json` prints."""
        served = {key: self.shoal.get(key) for key in ("served_by", "peer_id", "local", "route")}
        times = {key: self.shoal.get(key) for key in ("prefill_ms", "decode_ms")}
        return {
            "text": self.text,
            "model": self.model,
            **served,
            "job": self.job,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "ttft_ms": self.ttft_ms,
            "tok_s": self.tok_s,
            **times,
            "resumed_from": self.resumed_from,
        }

    def footer(self) -> str:
        """Who served, which model, why, and how fast, in one line."""
        parts = [f"{self.shoal.get('served_by', 'an unnamed box')} served {self.model}"]
        parts += [str(step) for step in self.shoal.get("route") or ()]
        parts += [f"went on after {name} failed" for name in self.resumed_from]
        if self.ttft_ms is not None:
            parts.append(f"first token after {self.ttft_ms:.0f} ms")
        if self.tok_s is not None:
            parts.append(f"{self.tok_s:.1f} tok/s")
        if self.usage is not None:
            parts.append(f"{self.usage['completion_tokens']} tokens")
        if self.finish_reason == "length":
            parts.append("cut at the length limit")
        return f"[{'; '.join(printable(part) for part in parts)}]"


@click.command()
@click.argument("text")
@click.option("--model", help="the model to ask  [default: the first that can be asked]")
@click.option("--system", help="a system message")
@click.option("--max-tokens", type=click.IntRange(min=1), help="stop after this many tokens")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always picks the likeliest token")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="same seed, same answer")
@click.option("--no-stream", is_flag=True, help="print the answer when it is complete")
@click.option(
    "--offload",
    type=click.Choice(["never", "prefer", "require"]),
    help="where it may run: here alone, where it is best, elsewhere alone  [default: as the box is configured]",
)
@click.option(
    "--substitution",
    type=click.Choice(["none", "quant", "family"]),
    help="what may stand in for a model that no box has  [default: as the box is configured]",
)
@click.option("--priority", type=click.Choice(["interactive", "normal", "bulk"]), help="[default: normal]")
@click.option(
    "--deadline", metavar="SECONDS", help="the answer is of no use later: refused at once if it cannot be met"
)
@click.option("--conversation", metavar="NAME", help="goes on with what the engine keeps of the conversation NAME")
@click.option("--resume", is_flag=True, help="if the serving box fails, go on on another one")
@box_command
def chat(
    place: Place,
    form: str,
    text: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    no_stream: bool,
    offload: str | None,
    substitution: str | None,
    priority: str | None,
    deadline: str | None,
    conversation: str | None,
    resume: bool,
) -> None:
    """Ask a question; '-' reads it from standard input."""
    show = form == "text" and not no_stream
    answer: Answer | None = None
    try:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": _standard_input() if text == "-" else text})
        client = place.client()
        answer = Answer(model or _first_model(client))
        optional = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "prompt_cache_key": conversation,
        }
        body = {
            "model": answer.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{key: value for key, value in optional.items() if value is not None},
        }
        wishes = {"Offload": offload, "Substitution": substitution, "Priority": priority, "Deadline": deadline}
        headers = {"X-Shoal-On-Interrupt": "resume" if resume else "error"}
        headers |= {f"X-Shoal-{name}": value for name, value in wishes.items() if value is not None}
        began = time.monotonic()
        with client.stream("/v1/chat/completions", body, headers) as events, client.understood():
            read_answer(answer, events, began, _print_piece if show else _keep_piece)
    except ClientError as error:
        if answer is not None and answer.text:
            error.details["partial_text"] = answer.text
            if form == "text":
                click.echo("" if show else printable(answer.text, keep_lines=True))
            if error.code == "interrupted" and _shut_out(client, str(answer.shoal.get("peer_id"))):
                name = answer.shoal.get("served_by")
                message = f"{name} does not let this box in any more, and ended its answer; see `shoal doctor`"
                raise ClientError("refused", message, error.details) from None
        raise
    if form == "json":
        print_json(answer.as_json())
        return
    click.echo("" if show else printable(answer.text, keep_lines=True))
    click.echo(styled(answer.footer(), err=True, dim=True), err=True)


def read_answer(answer: Answer, events: EventStream, began: float, on_piece: Callable[[str], None]) -> None:
    """Read a stream into `answer`; `began` is when the question was sent (seconds, monotonic).

    Raises ClientError where the stream ends in an error; `answer` then has what came before it.
    """
    answer.job = events.headers.get("x-shoal-job")
    first = last = 0.0
    for event in events:
        answer.model = str(event.get("model") or answer.model)
        shoal = event.get("shoal") or {}
        if "resumed_from" in shoal:
            answer.resumed_from.append(str(shoal["resumed_from"]))
        answer.shoal.update(shoal)
        answer.usage = event.get("usage") or answer.usage
        for choice in event["choices"]:
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            piece = choice["delta"].get("content")
            if piece:
                last = time.monotonic()
                first = first or last
                answer.text += piece
                on_piece(piece)
    tokens = int(answer.usage["completion_tokens"]) if answer.usage else 0
    if first:
        answer.ttft_ms = round((first - began) * 1000, 1)
    if tokens > 1 and last > first:
        answer.tok_s = round((tokens - 1) / (last - first), 1)


def _print_piece(piece: str) -> None:
    click.echo(printable(piece, keep_lines=True), nl=False)


def _keep_piece(_piece: str) -> None:
    """The answer is printed when it is complete."""


def _first_model(client: AgentClient) -> str:
    with client.understood():
        models = [str(model["id"]) for model in client.get("/v1/models")["data"]]
        states = [] if models else [peer["state"] for peer in client.get("/v1/fleet/peers")["peers"]]
    if states and all(state == "refused" for state in states):
        raise ClientError("refused", "every box that this one knows refuses its key; see `shoal peers`")
    if not models:
        raise ClientError(
            "no_capable_peer", "no model is held here or by a connected box; see `shoal peers` and `shoal doctor`"
        )
    return models[0]


def _shut_out(client: AgentClient, peer_id: str) -> bool:
    """Whether the box that broke an answer off refuses this one by now: then asking again is of no use.

    The agent knows once it has dialled that box again, for which this waits at most _REDIAL seconds.
    """
    deadline = time.monotonic() + _REDIAL
    never = threading.Event()
    while True:
        try:
            with client.understood():
                states = {str(peer["peer_id"]): str(peer["state"]) for peer in client.get("/v1/fleet/peers")["peers"]}
        except ClientError:
            return False
        state = states.get(peer_id, "")
        if state != "connecting" or time.monotonic() > deadline:
            return state in ("refused", "denied")
        never.wait(_LOOK)


def _standard_input() -> str:
    data = sys.stdin.buffer.read(MAX_PROMPT + 1)
    if len(data) > MAX_PROMPT:
        raise ClientError("usage", f"standard input has more than {MAX_PROMPT} bytes, the limit of a prompt")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ClientError("usage", "standard input is not UTF-8 text") from None
