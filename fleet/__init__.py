"""What boxes agree on and how they talk: identity, the peer protocol, presence, model facts.

Nothing here knows what one box does with it; that is `agent`, which imports this package and is never imported by it.
"""
