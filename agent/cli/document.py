"""The fleet document as the commands see it: through the running agent, or on the disk of one that is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from agent.cli.client import AgentClient, ClientError
from agent.document_disk import offer_to_disk, read_document
from agent.errors import AgentError
from fleet.document.bundle import read_bundle, write_bundle
from fleet.document.op import Op, read_op
from fleet.document.view import View, fold
from fleet.errors import FleetError
from fleet.identity.genesis import Genesis

#: Bytes of a bundle sent to an agent at once.
_CHUNK: Final = 2 * 1024 * 1024


@dataclass(frozen=True)
class Document:
    """What a box holds, as it was read."""

    genesis: Genesis | None
    ops: Sequence[Op]

    @cached_property
    def view(self) -> View:
        """The view that follows; raises ClientError where the box belongs to no fleet."""
        return fold(self.fleet, self.ops)

    @property
    def fleet(self) -> Genesis:
        """The genesis; raises ClientError where the box belongs to no fleet."""
        if self.genesis is None:
            raise ClientError("no_fleet", "this box belongs to no fleet yet; see `shoal fleet init`, `shoal join`")
        return self.genesis

    def highest_seq(self, author: bytes) -> int:
        """The highest seq of an author's ops that this box holds."""
        return max((op.seq for op in self.ops if op.author == author), default=0)


@dataclass(frozen=True)
class Outcome:
    """What became of one op: `new`, `held` or `refused`, and the reason's code."""

    state: str
    reason: str = ""


class DocumentAccess:
    """Reads and writes the document of one box. Every method raises ClientError.

    Without a URL only the disk is tried, without a state folder only the running agent.
    """

    def __init__(self, url: str | None, api_key_file: Path | None, state_dir: Path | None) -> None:
        self._client = AgentClient(url, api_key_file) if url is not None else None
        self._state_dir = state_dir

    def read(self, *, facts: bool = False) -> Document:
        """The document; without `facts`, only what admins and joins decide."""
        try:
            if self._client is None:
                raise _stopped(self._state_dir)
            lines = self._client.get_lines(f"/v1/fleet/document/ops?facts={int(facts)}")
            bundle = read_bundle(lines)
            # The agent has checked its own ops; they are decoded here, not verified again.
            return Document(bundle.genesis, [read_op(raw) for raw in bundle.ops])
        except ClientError as error:
            if error.code != "agent_unreachable" or self._state_dir is None or not self._state_dir.is_dir():
                raise
        except FleetError as error:
            raise ClientError("bad_answer", f"the agent's document cannot be read: {error.message}") from None
        try:
            genesis, ops = read_document(self._state_dir)
        except FleetError as error:
            raise ClientError(error.code, error.message) from None
        return Document(genesis, [op for op in ops if facts or op.kind != "node"])

    def offer(self, raws: Sequence[bytes], genesis: Genesis | None = None) -> list[Outcome]:
        """Hand ops to the box; they are on its disk when this returns. One outcome for each."""
        try:
            return self._offer_over_http(raws, genesis)
        except ClientError as error:
            if error.code != "agent_unreachable" or self._state_dir is None:
                raise
            if genesis is None and not self._state_dir.is_dir():
                raise
        try:
            return [Outcome(state, reason) for state, reason in offer_to_disk(self._state_dir, genesis, raws)]
        except (AgentError, FleetError) as error:
            raise ClientError(error.code, error.message) from None
        except OSError as error:
            raise ClientError("store", f"cannot write {self._state_dir}: {error.strerror or error}") from None

    def _offer_over_http(self, raws: Sequence[bytes], genesis: Genesis | None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        if self._client is None:
            raise _stopped(self._state_dir)
        for chunk in _chunks(raws) or [[]]:
            text = "".join(write_bundle(genesis, chunk))
            answer = self._client.post_text("/v1/fleet/document/offer", text)
            with self._client.understood():
                outcomes += [Outcome(str(one["state"]), str(one["reason"])) for one in answer["outcomes"]]
        return outcomes


def _stopped(state_dir: Path | None) -> ClientError:
    return ClientError("agent_unreachable", f"there is no box in {state_dir}, and no agent was named with --url")


def _chunks(raws: Sequence[bytes]) -> list[list[bytes]]:
    chunks: list[list[bytes]] = []
    size = _CHUNK
    for raw in raws:
        size += len(raw) * 4 // 3 + 8
        if size > _CHUNK or not chunks:
            chunks.append([])
            size = len(raw) * 4 // 3 + 8
        chunks[-1].append(raw)
    return chunks
