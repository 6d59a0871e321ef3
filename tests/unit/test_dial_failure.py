"""What a person reads when a box cannot be dialled: the cause, whatever libp2p wraps around it."""

from __future__ import annotations

import errno
import itertools
import os

import pytest
from libp2p.exceptions import MultiError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.network.exceptions import SwarmDialAllFailedError, SwarmException
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import OpenConnectionError, SecurityUpgradeFailure

from fleet.net.dial_failure import describe

ADDR = "/ip4/192.168.7.4/tcp/4001/p2p/12D3KooWKey"


def chain(*errors: BaseException) -> BaseException:
    """The first error, raised from the second, and so on."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def as_trio_and_libp2p_raise(cause: OSError) -> BaseException:
    attempts = chain(OSError("all attempts to connect failed"), ExceptionGroup("all attempts failed", [cause]))
    opened = chain(SwarmException("fail to open connection to peer 12D3"), OpenConnectionError("Failed"), attempts)
    assert isinstance(opened, Exception)
    return chain(SwarmDialAllFailedError("unable to connect"), MultiError([opened]))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ECONNREFUSED, "connection refused"),
        (errno.EHOSTUNREACH, "no route to host"),
        (errno.ENETUNREACH, "network is unreachable"),
        (errno.ETIMEDOUT, "timed out"),
        (errno.EPERM, "firewall"),
    ],
)
def test_what_the_kernel_said_is_what_is_told(number: int, words: str) -> None:
    error = as_trio_and_libp2p_raise(OSError(number, f"Error connecting to (...): {os.strerror(number)}"))
    assert words in describe(error, ADDR)


def test_a_handshake_that_fails_says_what_is_at_the_other_end() -> None:
    outer = SecurityUpgradeFailure("handshake failed")
    assert "12D3KooWKey" in describe(chain(outer, PeerIDMismatchesPubkey("ids differ")), ADDR)
    assert "closed the connection" in describe(
        chain(SecurityUpgradeFailure("x"), IncompleteReadError("closed", expected_bytes=1, received_bytes=0)), ADDR
    )
    assert "another service" in describe(chain(SecurityUpgradeFailure("x"), ValueError("no \\n")), ADDR)


def test_a_name_without_an_address_is_named() -> None:
    error = chain(SwarmException("fail to open"), OpenConnectionError("Failed to resolve"))
    assert describe(error, "/dns4/box.example/tcp/1") == "the name box.example leads to no address"


def test_anything_else_is_its_innermost_text_on_one_short_line() -> None:
    assert describe(chain(SwarmException("outer"), ValueError("inner\nmore")), ADDR) == "inner"
    assert describe(ValueError(), ADDR) == "ValueError"
    assert len(describe(ValueError("x" * 5000), ADDR)) == 200
    assert describe(ExceptionGroup("several", [ValueError("one"), KeyError("two")]), ADDR) == "'two'"
