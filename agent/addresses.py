"""Which addresses and keys a configuration may name: what cannot work is found before anything starts. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from fleet.errors import IdentityError
from fleet.identity.keys import public_key_from_peer_id


def listen_problem(addr: str) -> str | None:
    """Why boxes cannot be listened for at a multiaddr; None if they can."""
    form = "use /ip4/0.0.0.0/tcp/4210 or another /ip4|ip6/ADDRESS/tcp/PORT"
    parts = addr.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return f"{short(addr)} is not an address to listen on; {form}"
    if not _is_ip(parts[2], parts[1]) or not _is_port(parts[4], lowest=0):
        return f"{short(addr)} has no valid address or port; {form}"
    return None


def announce_problem(addr: str) -> str | None:
    """Why a multiaddr cannot be told to others as this box's; None if it can."""
    form = "use /ip4/10.0.0.7/tcp/4210 or another /ip4|ip6|dns4|dns6/HOST/tcp/PORT"
    parts = addr.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6", "dns4", "dns6") or parts[3] != "tcp":
        return f"{short(addr)} is not an address to announce; {form}"
    host_is_valid = _is_host(parts[2]) if parts[1] in ("dns4", "dns6") else _is_ip(parts[2], parts[1])
    if not host_is_valid or not _is_port(parts[4], lowest=1):
        return f"{short(addr)} has no valid host or port; {form}"
    if parts[2] in ("0.0.0.0", "::"):
        return f"{short(addr)} stands for every address and leads nowhere; {form}"
    return None


def peer_problem(addr: str) -> str | None:
    """Why a multiaddr cannot be dialled; None if it can."""
    form = "use /ip4/10.0.0.7/tcp/4210/p2p/PEERID as `shoal id` prints it on the other box"
    parts = addr.split("/")
    if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
        return f"{short(addr)} is not a peer's address; {form}"
    host_is_valid = _is_host(parts[2]) if parts[1] in ("dns4", "dns6") else _is_ip(parts[2], parts[1])
    if not host_is_valid or not _is_port(parts[4], lowest=1):
        return f"{short(addr)} has no valid host or port; {form}"
    return key_problem(parts[6])


def key_problem(key: str) -> str | None:
    """Why a text is not the PeerID of a box; None if it is."""
    try:
        public_key_from_peer_id(key)
    except IdentityError as error:
        return f"{short(key)}: {error.message}"
    return None


def http_problem(listen: str, *, has_keys: bool) -> str | None:
    """Why HTTP cannot be served at HOST:PORT; an address that others reach needs API keys. None if it can."""
    host, _, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    if not (address == "localhost" or _is_ip(address, "ip6" if bracketed else "ip4")) or not _is_port(port, lowest=0):
        return f"{short(listen)} is not HOST:PORT; use 127.0.0.1:8420, [::1]:8420 or another IP address"
    if has_keys or address == "localhost" or ipaddress.ip_address(address).is_loopback:
        return None
    return (
        f"{short(listen)} can be reached from other machines, so it needs API keys: set http.api_key_file to a file"
        " of mode 0600 with one key a line, or listen on 127.0.0.1"
    )


def _is_ip(text: str, family: str) -> bool:
    try:
        return "%" not in text and f"ip{ipaddress.ip_address(text).version}" == family
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= 253
        and all(
            0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
            for label in labels
        )
        and not _is_number(labels)
    )


def _is_number(labels: Sequence[str]) -> bool:
    """Whether resolvers take a name for an IPv4 address: 127.1, 0x7f.1, 0177.0.0.1 and 2130706433 are all loopback.

    That is so where its last label is a number, in any base (glibc's inet_aton(3); WHATWG URL, "ends in a number").
    No top-level domain is one (RFC 3696, section 2), so a real name is never refused for it.
    """
    last = labels[-1].lower()
    digits = last.removeprefix("0x")
    return last.isdigit() or (digits != last and all(c in "0123456789abcdef" for c in digits))


def _is_port(text: str, *, lowest: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) < 65536


def short(text: str) -> str:
    """A text as an error message quotes it: printable, at most 100 characters."""
    return repr(text if len(text) <= 100 else text[:97] + "...")
