"""Models that come while the agent runs: run only as long as the file is the one that was vouched for, and given up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine.pool import EnginePool

LIMIT = 20.0


def test_a_file_that_is_not_the_one_that_was_vouched_for_is_neither_run_nor_told_of(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"another file")
    right = "sha256:" + hashlib.sha256(b"the right file").hexdigest()

    async def main() -> None:
        changed = trio.Event()
        pool = EnginePool([], EngineConfig(), tmp_path, lambda: changed.set())
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            pool.add(ModelConfig(path=path, name="smol"), right)
            pool.add(ModelConfig(path=path, name="smol"), right)  # once is enough
            with trio.fail_after(LIMIT):
                while pool.models()[0].state != "failed":
                    await changed.wait()
                    changed = trio.Event()
            (held,) = pool.models()
            assert held.hash == ""
            assert held.pid is None
            assert hashlib.sha256(b"another file").hexdigest() in (held.error or "")
            assert pool.problem("smol") is not None
            assert pool.added() == {right}
            assert await pool.remove(right)
            assert pool.models() == ()
            assert not await pool.remove(right)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_file_that_was_hashed_a_moment_ago_is_not_hashed_again_unless_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"a file")
    claimed = "sha256:" + "ab" * 32  # so that it shows which one is believed

    async def main() -> None:
        changed = trio.Event()
        pool = EnginePool([], EngineConfig(), tmp_path, lambda: changed.set())
        pool.note_hash(path, claimed)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            pool.add(ModelConfig(path=path, name="smol"), claimed)
            with trio.fail_after(LIMIT):
                while pool.models()[0].state != "failed":  # it is no GGUF
                    await changed.wait()
                    changed = trio.Event()
                assert pool.models()[0].hash == claimed
                path.write_bytes(b"a file that was changed")
                while pool.models()[0].hash:
                    await changed.wait()
                    changed = trio.Event()
            nursery.cancel_scope.cancel()

    trio.run(main)
