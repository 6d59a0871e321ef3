"""A stock libp2p host whose key is of a kind that no box has: `KIND ADDRESS`; prints whether it got a link.

It imports nothing of Shoal, since whatever imports fleet.net has no such keys.
"""

from __future__ import annotations

import importlib
import sys

import trio
from libp2p import new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from multiaddr import Multiaddr


async def main(kind: str, address: str) -> None:
    key_pair = importlib.import_module(f"libp2p.crypto.{kind}").create_new_key_pair()
    noise = Transport(key_pair, noise_privkey=create_new_key_pair().private_key)
    host = new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})
    server = info_from_p2p_addr(Multiaddr(address))
    async with host.run(listen_addrs=[]):
        try:
            await host.connect(server)
            stream = await host.new_stream(server.peer_id, ["/shoal/link/1"])
            await stream.read(1)
        except Exception as error:
            print("refused", type(error).__name__, flush=True)
        else:
            print("linked", flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
