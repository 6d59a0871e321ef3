"""GGUF files: a whole model that is tiny and loads, any header that a test asks for, and a corpus of corrupt ones."""
