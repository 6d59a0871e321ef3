"""The `shoal` command. It talks to a running agent over HTTP and to keys and configuration on disk.

Modules here import what is heavy (libp2p, the agent itself) only inside the command that needs it: `--help` is quick.
"""
