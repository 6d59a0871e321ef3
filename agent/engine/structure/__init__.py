"""What an answer must look like: schemas and grammars, the functions a model may call, and what of a chat fits.

Pure: text and numbers in, text and numbers out. Everything here may come from a hostile peer, so every step is bounded
before it is taken. Only `enforce` knows a vocabulary, and runs in the child process.
"""
