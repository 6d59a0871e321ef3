"""The fleet document of a box whose agent does not run: read and written straight on its disk, by the same rules."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.errors import ConfigError
from fleet.document.op import Op, read_op, signature_holds
from fleet.document.opset import OpSet, refuse_other_fleets
from fleet.document.store import OpStore
from fleet.document.view import fold
from fleet.durable import make_private
from fleet.errors import DamagedGenesisError, RefusedOpError
from fleet.identity.genesis import Genesis

#: Below the state folder.
FOLDER: Final = "fleet"

#: What became of one op: its state (new, held, refused) and, where it was refused, the reason's code.
Result = tuple[str, str]


@contextmanager
def locked_state_dir(state_dir: Path) -> Iterator[None]:
    """Make the state folder (0700) and hold its lock: two processes that write as one box would contradict each other.

    Raises ConfigError while another process holds it.
    """
    make_private(state_dir)
    state_dir.chmod(0o700)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another agent is using {state_dir}; stop it, or give this one its own state_dir"
            ) from None
        yield
    finally:
        os.close(lock)


def read_document(state_dir: Path) -> tuple[Genesis | None, list[Op]]:
    """The genesis and every op on disk; works beside a running agent.

    Raises StoreError, and RefusedOpError where there are ops of another fleet than the genesis says.
    """
    store = OpStore(state_dir / FOLDER)
    genesis = store.genesis()
    if genesis is None:
        return None, []
    ops = store.peek()
    refuse_other_fleets(genesis, ops)
    return genesis, ops


def offer_to_disk(state_dir: Path, genesis: Genesis | None, raws: Sequence[bytes]) -> list[Result]:
    """Take ops in while no agent runs; with a genesis, make a box without a fleet part of it.

    Returns what became of each, in order. Raises ConfigError while an agent runs, StoreError, and RefusedOpError
    where the box belongs to no fleet and none is given.
    """
    with locked_state_dir(state_dir):
        store = OpStore(state_dir / FOLDER)
        known = store.genesis()
        if genesis is None and known is None:
            raise RefusedOpError("no_fleet", "this box belongs to no fleet yet; see `shoal fleet init`, `shoal join`")
        if genesis is not None and known is not None:
            store.found(genesis)  # refuses another fleet, in words
        own = known or genesis
        if own is None:
            raise AssertionError("one of the two was given")
        try:
            ops = OpSet(own)
            ops.restore(store.open().ops)
            results, added, dropped = _admit(ops, raws)
            store.commit(added, dropped)
            store.found(own)
        finally:
            store.close()
    return results


def _admit(ops: OpSet, raws: Sequence[bytes]) -> tuple[list[Result], list[Op], list[Op]]:
    results: list[Result] = []
    added: dict[bytes, Op] = {}
    dropped: list[Op] = []
    for raw in raws:
        try:
            op = read_op(raw)
            if op.id not in ops and not signature_holds(op):
                raise RefusedOpError("signature", "the op was not signed by its author")
            admitted = ops.admit(op)
        except RefusedOpError as error:
            results.append(("refused", error.reason))
            continue
        results.append(("new" if admitted.new else "held", ""))
        if admitted.new:
            added[op.id] = op
            dropped += [old for old in admitted.dropped if added.pop(old.id, None) is None]
    return results, list(added.values()), dropped


@dataclass(frozen=True)
class Repair:
    """What was found and done. `problems` are SQLite's words, or what was wrong with the genesis or with the fleet of
    the ops; `set_aside` is where a bad database went.

    `fleet` is None where the box does not know its fleet any more, but holds ops of one, by the id `fleet_id`; a bad
    genesis is then at `genesis_set_aside`.
    """

    fleet: str | None
    fleet_id: str
    ops: int
    members: int
    problems: tuple[str, ...]
    damaged: int
    set_aside: Path | None
    genesis_set_aside: Path | None = None


def repair(state_dir: Path) -> Repair:
    """Check the document on disk, rebuild the file where something is wrong with it, and fold its view anew.

    A damaged genesis is set aside, for only another box has a copy of it, and so are ops of another fleet. What a bad
    file can no longer give comes back from other boxes. Raises ConfigError while an agent runs, StoreError, and
    RefusedOpError where there is no fleet.
    """
    with locked_state_dir(state_dir):
        store = OpStore(state_dir / FOLDER)
        problems: tuple[str, ...] = ()
        genesis_aside: Path | None = None
        try:
            genesis = store.genesis()
        except DamagedGenesisError as error:
            genesis, genesis_aside, problems = None, store.set_genesis_aside(), (error.message,)
        if genesis is None and genesis_aside is None and not store.path.exists():
            raise RefusedOpError("no_fleet", "this box belongs to no fleet; there is no document to repair")
        try:
            opened = store.open()
            found = tuple(store.check())
            others = sum(genesis is not None and op.fleet != genesis.fleet_id for op in opened.ops)
            if others:
                found += (f"{others} ops were of another fleet than genesis.cbor says",)
            aside = store.rebuild(genesis.fleet_id if genesis else None) if found else opened.set_aside
            ops = store.peek()
        finally:
            store.close()
    problems += found
    if genesis is None:
        fleet_id = ops[0].fleet.hex() if ops else ""
        return Repair(None, fleet_id, len(ops), 0, problems, opened.damaged, aside, genesis_aside)
    members = len(fold(genesis, ops).authority.members)
    return Repair(genesis.name, genesis.fleet_id.hex(), len(ops), members, problems, opened.damaged, aside)
