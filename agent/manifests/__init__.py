"""Desired state as people write it: YAML manifests, their kinds, their mistakes, and what applying them would change.

Pure: files are read, and ops are signed and handed over, by `agent.cli.manifests`.
"""
