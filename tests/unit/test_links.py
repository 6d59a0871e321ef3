"""Which of the addresses that a member writes are dialled."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.links import worth_dialling
from tests.harness import peer_id_of

PEER, OTHER = peer_id_of("peer"), peer_id_of("other")
ABROAD = (f"/ip4/10.0.0.9/tcp/4210/p2p/{OTHER}", f"/ip4/127.0.0.1/tcp/4210/p2p/{OTHER}")


@pytest.mark.parametrize(
    ("addr", "dialled"),
    [
        (f"/ip4/10.0.0.7/tcp/4210/p2p/{PEER}", True),
        (f"/ip6/2001:db8::7/tcp/4210/p2p/{PEER}", True),
        (f"/dns4/pos-1.shop.example/tcp/4210/p2p/{PEER}", True),
        (f"/ip4/10.0.0.7/tcp/4210/p2p/{OTHER}", False),
        (f"/ip4/127.0.0.1/tcp/6379/p2p/{PEER}", False),
        (f"/ip4/0.0.0.0/tcp/6379/p2p/{PEER}", False),
        (f"/ip6/::1/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/localhost/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/LOCALHOST/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/127.1/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/0x7f.1/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/0x7f000001/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/0X7F000001./tcp/6379/p2p/{PEER}", False),
        (f"/dns4/0177.0.0.1/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/017700000001/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/2130706433/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/127.0.0.1./tcp/6379/p2p/{PEER}", False),
        (f"/dns4/127.0.0.0x1/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/0x/tcp/6379/p2p/{PEER}", False),
        (f"/dns4/10.0.0.7/tcp/4210/p2p/{PEER}", False),
        (f"/dns4/0x7f.1.example/tcp/4210/p2p/{PEER}", True),
        (f"/dns4/pos-1/tcp/4210/p2p/{PEER}", True),
        (f"/dns4/1.2.0xpos/tcp/4210/p2p/{PEER}", True),
        (f"/dns6/ip6-localhost/tcp/6379/p2p/{PEER}", False),
        (f"/ip6/::ffff:127.0.0.1/tcp/6379/p2p/{PEER}", False),
        (f"/ip6/::ffff:0:0/tcp/6379/p2p/{PEER}", False),
        (f"/ip4/224.0.0.1/tcp/6379/p2p/{PEER}", False),
        (f"/ip4/10.0.0.7/udp/53/p2p/{PEER}", False),
        ("/unix/socket", False),
        ("", False),
        ("/", False),
        ("\x1b[31m", False),
        (f"/ip4/10.0.0.7/tcp/99999/p2p/{PEER}", False),
    ],
)
def test_only_addresses_that_can_lead_to_the_box_are_dialled(addr: str, dialled: bool) -> None:
    assert worth_dialling(PEER, [addr], ABROAD) == ((addr,) if dialled else ())


def test_loopback_is_dialled_where_everything_is_on_loopback() -> None:
    addr = f"/ip4/127.0.0.1/tcp/4211/p2p/{PEER}"
    assert worth_dialling(PEER, [addr], [f"/ip4/127.0.0.1/tcp/4210/p2p/{OTHER}"]) == (addr,)
    assert worth_dialling(PEER, [addr], []) == (addr,), "a box that nobody can dial may be anywhere"


@given(st.from_regex(r"(0x[0-9a-f]{0,9}|0?[0-9]{1,11})(\.(0x[0-9a-f]{0,3}|0?[0-9]{1,4})){0,3}\.?", fullmatch=True))
def test_no_name_that_the_resolver_reads_as_an_address_is_dialled(name: str) -> None:
    try:
        socket.inet_aton(name.removesuffix("."))
    except OSError:
        return
    assert worth_dialling(PEER, [f"/dns4/{name}/tcp/6379/p2p/{PEER}"], ABROAD) == ()
