"""What one box does: run models, take jobs, decide where they run, serve HTTP, and the `shoal` command.

It imports `fleet` (what boxes agree on) and is never imported by it.
"""
