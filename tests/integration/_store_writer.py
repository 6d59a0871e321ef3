"""Writes ops to a store without end and says, on standard output, which are on disk. To be killed.

One writer is forked for each line on standard input, for its imports take longer than it lives. It first says its pid;
`ended` follows the last that was heard of it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from fleet.document.facts import Node
from fleet.document.replica import Draft, Replica
from fleet.document.store import OpStore
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of


async def write(folder: Path) -> None:
    fleet = Fleet()
    box = Identity.from_seed(seed_of("writer"))
    store = OpStore(folder)
    store.found(fleet.genesis)
    replica = Replica(fleet.genesis, store.open().ops, store)
    await replica.offer([op.raw for op in fleet.certify(box.peer_id)])
    number = replica.ops.highest_seq(box.public_key)
    while True:
        number += 1
        # One commit of several ops: all of them or none.
        drafts = [Draft("node", "node", Node(name=f"n{number}").body())]
        drafts += [Draft("node", f"hold/{slot}", {"name": f"n{number}"}) for slot in range(3)]
        ops = await replica.write_all(box, drafts)
        sys.stdout.write(f"{ops[-1].seq}\n")
        sys.stdout.flush()


def main() -> None:
    for _ in sys.stdin:
        writer = os.fork()
        if writer == 0:
            sys.stdout.write(f"{os.getpid()}\n")
            sys.stdout.flush()
            trio.run(write, Path(sys.argv[1]))
        os.waitpid(writer, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


main()
