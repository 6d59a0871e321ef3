"""A host in a process of its own: what it prints first is the address to dial. Run as a module with a mode.

`holds` admits everyone and reads links; `refuses` admits nobody; `idle` also prints what memory it adds to what
importing it takes, in bytes; `dials ADDRESS` links to a host by itself.
"""

from __future__ import annotations

import sys

import psutil
import trio

from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream
from tests.harness import seed_of


async def hold(stream: ByteStream) -> None:
    try:
        while await stream.read(1000):
            pass
    finally:
        await stream.close()


async def main(mode: str, *addresses: str) -> None:
    gate = Gate(lambda peer_id: mode != "refuses")
    before = psutil.Process().memory_info().rss
    host = Host(seed_of("server"), listen=["/ip4/127.0.0.1/tcp/0"], gate=gate, on_link=hold)
    async with host.run():
        print(host.addrs()[0], flush=True)
        if mode == "idle":
            print(psutil.Process().memory_info().rss - before, flush=True)
        for address in addresses:
            await host.open_link(address.rsplit("/", 1)[1], [address], timeout=10)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
