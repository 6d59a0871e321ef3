"""What boxes tell their neighbours without being asked: presence, the ephemeral load of each box.

Nothing here is stored; what the fleet agrees on for longer belongs to the fleet document.
"""
