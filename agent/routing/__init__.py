"""Where a job should run: pure decisions over what this box knows, each with its reason.

No I/O, no clock, no event loop; the caller passes the time and acts on the verdict.
"""
