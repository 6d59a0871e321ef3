"""One target under libFuzzer: python -m tests.fuzz.harness TARGET [libFuzzer's flags] [corpus folders].

Needs shoal[fuzz] (atheris). Whatever the target lets out ends the process with libFuzzer's exit code and the input in
a file. Extensions (cbor2, pydantic-core) are not instrumented, so half of the mutations are `mutate`'s, which knows
their formats.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["agent", "fleet", "yaml"], enable_loader_override=False):
    from tests.fuzz.mutate import mutate
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until a flag says stop, or something fails."""
    target = TARGETS[sys.argv.pop(1)]
    seeds, tokens = list(target.seeds()), list(target.tokens)

    def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(data, chance, seeds, tokens, max_size)

    def run(data: bytes) -> None:
        target.run(data)

    atheris.Setup([sys.argv[0], f"-max_len={target.max_len}", *sys.argv[1:]], run, custom_mutator=custom_mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
