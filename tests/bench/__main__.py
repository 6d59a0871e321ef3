"""`python -m tests.bench [NAME…]`: run the benches, without a name those that need nothing built."""

from __future__ import annotations

import importlib
import sys

#: The others have targets of their own: the engine's builds llama-server, and each takes a quarter of an hour.
USUAL = ("borrow", "document")
NAMES = (*USUAL, "engine", "delegation", "blobs", "mqtt")


def main(names: list[str]) -> int:
    """Run benches by name; 1 if any figure of any is past its limit."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no such bench: {', '.join(unknown)}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or USUAL:
        print(f"== {name}", flush=True)
        failed |= importlib.import_module(f"tests.bench.{name}").main()
    return failed


sys.exit(main(sys.argv[1:]))
