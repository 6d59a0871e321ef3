"""What a model is: its content hash, its names, and the facts its GGUF header states.

Pure: bytes and strings in, values out. Files are opened, hashed and loaded elsewhere.
"""
