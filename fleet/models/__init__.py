"""What a model is: its content hash, what its name says, the facts of its GGUF header, and what may stand in for it.

Pure: bytes and strings in, values out. Files are opened, hashed and loaded elsewhere, and boxes are chosen elsewhere.
"""
