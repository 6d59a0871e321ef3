"""A job's life: run it here, borrow a peer for it, or lend this box to a peer's; deadlines, retries, draining.

Where a job should run is decided in `agent.routing`; how tokens are made is `agent.engine`; who asked is `agent.http`.
"""
