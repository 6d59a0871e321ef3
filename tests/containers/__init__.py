"""Boxes as containers: the images as they are shipped, with the real model, and what networks, kernels and disks do to
them. `engine` is the Docker side, `box` one box, `faults` what is done to it. `make test-containers` runs the tests.
"""
