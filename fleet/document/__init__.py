"""What the fleet agrees on: signed ops, the rules that accept them, and the view that follows from the accepted set.

No network lives here, and no clock: whoever calls passes the time. Only `store` touches the disk.
"""
