"""The rules of the fleet document, shown on made-up fleets: replicas, faults and foes, and an oracle that keeps its own
books. Not here: single functions (tests/unit), real sockets and disks (tests/integration)."""
