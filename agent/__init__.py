"""What one box does: run models, take jobs, decide where they run, serve HTTP, and the `shoal` command.

It imports `fleet` (what boxes agree on) and is never imported by it.
"""

import sys

# structlog draws tracebacks with rich wherever that is installed, and libp2p brings it along: 2.8 MB of a small box's
# memory for what a log has no use for. To the import system a module that is None is not installed.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
