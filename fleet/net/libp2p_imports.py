"""Importing libp2p without the parts of it that no box uses: a quarter of a small box's memory.

libp2p imports everything it has, whatever is used: QUIC, WebSockets, DHT relays, mDNS, UPnP and certificates from the
internet, each with libraries of its own. Shoal speaks TCP, Noise and Yamux. What libp2p asks for and never touches is
left out in one of two ways (docs/adr/0022): packages come without what their `__init__` imports, and modules whose
names are merely mentioned become stand-ins that refuse to be used. To be imported before libp2p; whatever is loaded
already stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Final, NoReturn

#: Packages whose modules are wanted and whose own imports are not.
BARE: Final = frozenset(
    {
        "libp2p.discovery.mdns",
        "libp2p.discovery.upnp",
        "libp2p.relay",
        "libp2p.relay.circuit_v2",
        "libp2p.transport.quic",
        "libp2p.transport.websocket",
    }
)
#: Modules that are mentioned and never used, with the names that libp2p imports from each.
STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "libp2p.crypto.rsa": ("RSAPrivateKey", "RSAPublicKey", "create_new_key_pair"),
    "libp2p.crypto.secp256k1": ("Secp256k1PrivateKey", "Secp256k1PublicKey"),
    "libp2p.discovery.bootstrap.bootstrap": ("BootstrapDiscovery",),
    "libp2p.discovery.mdns.mdns": ("MDNSDiscovery", "create_mdns_discovery"),
    "libp2p.discovery.upnp.upnp": ("UpnpManager",),
    "libp2p.security.tls.autotls.acme": ("ACMEClient", "compute_b36_peer_id"),
    "libp2p.security.tls.autotls.broker": ("BrokerClient",),
    "libp2p.security.pnet.protector": ("new_protected_conn",),
    "libp2p.security.secio.transport": ("ID", "Transport"),
    "libp2p.transport.quic.config": ("QUICTransportConfig",),
    "libp2p.transport.quic.connection": ("QUICConnection",),
    "libp2p.transport.quic.exceptions": ("QUICStreamClosedError", "QUICStreamResetError"),
    "libp2p.transport.quic.stream": ("QUICStream",),
    "libp2p.transport.quic.transport": ("QUICTransport",),
    "libp2p.transport.quic.utils": ("is_quic_multiaddr",),
    "libp2p.transport.websocket.transport": ("WebsocketTransport",),
}
#: Modules with something of Shoal's own in their place: where it is, and what is there under which name.
_OWN: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "multiaddr.codecs.ip4": ("fleet.net.ip_codecs", {"Codec": "IPv4Codec"}),
    "multiaddr.codecs.ip6": ("fleet.net.ip_codecs", {"Codec": "IPv6Codec"}),
    "multiaddr.resolvers.dns": (
        "fleet.net.host_names",
        {"DNSADDR_TXT_PREFIX": "PREFIX", "DNSResolver": "SystemResolver"},
    ),
}


def _stand_in(module: str, name: str) -> type:
    """A class that can be mentioned in annotations and `except` clauses, and does nothing else."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{module}.{name} is left out of Shoal; see fleet/net/libp2p_imports.py")

    return type(name, (Exception,), {"__module__": module, "__new__": refuse, "from_bytes": refuse})


class _Empty(Loader):
    """Makes a module without running its file."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        for name in STAND_INS.get(module.__name__, ()):
            setattr(module, name, _stand_in(module.__name__, name))
        if module.__name__ in _OWN:
            source, names = _OWN[module.__name__]
            own = import_module(source)
            for name, ours in names.items():
                setattr(module, name, getattr(own, ours))


class _LeavingOut:
    """A finder of modules, of those alone that are not to be loaded as they are."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in STAND_INS or name in _OWN:
            return spec_from_loader(name, _Empty())
        spec = PathFinder.find_spec(name, path, target) if name in BARE else None
        if spec is not None:
            spec.loader = _Empty()
        return spec


def leave_out_unused() -> None:
    """Let libp2p be imported without what Shoal does not use of it."""
    if not any(isinstance(finder, _LeavingOut) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeavingOut())
