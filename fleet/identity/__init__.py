"""Who a box is: the Ed25519 seed on disk or in the environment, and the PeerID derived from it.

Who may speak to whom is not decided here.
"""
