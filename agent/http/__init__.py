"""The HTTP face of a box: the OpenAI-compatible API, the fleet API, health.

It turns requests into jobs and job events into responses; it decides nothing.
"""
