"""What libp2p is imported without, and that nothing of it is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import StringParseError

from fleet.net.host_names import SystemResolver
from fleet.net.libp2p_imports import BARE, STAND_INS

ROOT = Path(__file__).parents[2]
#: Libraries that libp2p brings and nothing of Shoal's networking needs.
UNUSED = ("aioquic", "Crypto", "coincurve", "dns", "fastecdsa", "httpx", "miniupnpc", "netaddr", "requests", "zeroconf")


def python(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_what_is_left_out_is_in_the_pinned_libp2p_under_these_names() -> None:
    """A name that is no longer there would be a stand-in for nothing, and hide that libp2p has changed."""
    wanted = {module: list(names) for module, names in STAND_INS.items()}
    found = python(
        "import importlib, json, sys, libp2p\n"
        f"wanted = json.loads({json.dumps(wanted)!r})\n"
        f"[importlib.import_module(name) for name in {sorted(BARE)!r}]\n"
        "missing = [f'{m}.{n}' for m, names in wanted.items() for n in names"
        " if not hasattr(importlib.import_module(m), n)]\n"
        "print(json.dumps([missing, 'fleet' in sys.modules]))"
    )
    assert json.loads(found) == [[], False]


def test_the_host_is_imported_without_what_it_does_not_use() -> None:
    loaded = python(
        "import json, sys, fleet.net.host\n"
        "import libp2p.transport.quic.transport as quic\n"
        "try:\n    quic.QUICTransport()\n    used = ''\n"
        "except NotImplementedError as error:\n    used = str(error)\n"
        "print(json.dumps([sorted(sys.modules), used]))"
    )
    modules, used = json.loads(loaded)
    assert "libp2p.security.noise.transport" in modules
    assert [name for name in UNUSED if name in modules] == []
    assert "QUICTransport is left out" in used


@pytest.mark.parametrize(
    ("addr", "resolved"),
    [
        ("/dns4/localhost/tcp/4210", ["/ip4/127.0.0.1/tcp/4210"]),
        ("/ip4/10.0.0.1/tcp/4210", ["/ip4/10.0.0.1/tcp/4210"]),
        ("/dnsaddr/localhost/tcp/4210", ["/dnsaddr/localhost/tcp/4210"]),
    ],
)
def test_names_are_looked_up_as_the_system_does(addr: str, resolved: list[str]) -> None:
    assert [str(one) for one in trio.run(SystemResolver().resolve, Multiaddr(addr))] == resolved


def test_a_name_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(OSError, match=r"[Nn]ame"):
        trio.run(SystemResolver().resolve, Multiaddr("/dns4/nobody.invalid/tcp/1"))


@pytest.mark.parametrize("addr", ["/ip4/10.0.0.1/tcp/4210", "/ip6/fe80::1/tcp/4210", "/ip6/::ffff:a00:1/tcp/4210"])
def test_addresses_keep_their_form(addr: str) -> None:
    assert str(Multiaddr(Multiaddr(addr).to_bytes())) == addr


def test_addresses_have_the_bytes_that_others_read() -> None:
    assert Multiaddr("/ip4/10.0.0.1/tcp/4210").to_bytes().hex() == "040a000001061072"
    assert Multiaddr("/ip6/::1/tcp/1").to_bytes().hex() == "29" + "00" * 15 + "01" + "060001"


@pytest.mark.parametrize(
    "addr", ["/ip4/127.1/tcp/1", "/ip4/1.2.3.256/tcp/1", "/ip4/01.2.3.4/tcp/1", "/ip6/fe80::1%eth0/tcp/1"]
)
def test_what_is_no_address_is_refused(addr: str) -> None:
    with pytest.raises(StringParseError):
        Multiaddr(addr)
