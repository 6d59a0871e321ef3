"""Fuzzing of every decoder that a peer, a broker, a client or a file can reach.

`targets` lists them; the tests here drive each with hypothesis, `make fuzz` (`__main__`, `harness`) with libFuzzer
through atheris. Inputs that once failed are in corpus/TARGET/ and are run by both for ever.
"""
