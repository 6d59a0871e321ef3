"""A model's process that computes for ever at the first step after its warm-up, as one with a fault would.

Started in place of `agent.engine.worker`, with the same arguments.
"""

from __future__ import annotations

import sys

from agent.engine.worker import Engine, main


def _loop() -> None:
    while True:
        pass


class Looping(Engine):
    """One that is well until it has work."""

    def warm_up(self) -> tuple[float, float]:
        """As ever; after it each step goes on for ever."""
        found = super().warm_up()
        assert self._context is not None
        self._context.decode = lambda slices: _loop()  # type: ignore[assignment,method-assign,misc,return-value]
        return found


if __name__ == "__main__":
    import agent.engine.worker as worker

    worker.Engine = Looping  # type: ignore[misc]
    main(int(sys.argv[1]), int(sys.argv[2]))
