"""The two ends of a transfer as processes of their own: `python -m tests.bench.transfer_sides SIDE ARGUMENT…`.

A side prints one line of JSON when it is ready and one when it has got, or been told to end by its standard input.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def raw_give(path: str) -> None:
    """Send a file to the first that connects, with sendfile alone."""
    size = Path(path).stat().st_size
    with socket.create_server(("127.0.0.1", 0)) as listening, Path(path).open("rb") as file:
        say(port=listening.getsockname()[1])
        connection, _ = listening.accept()
        used, at = cpu(), 0
        with connection:
            while at < size:
                at += os.sendfile(connection.fileno(), file.fileno(), at, size - at)
        sys.stdin.readline()
        say(cpu=cpu() - used)


def raw_get(target: str, port: str) -> None:
    """Receive until the end, write it to a file, and have the disk keep it."""
    buffer = memoryview(bytearray(MIB))
    say(ready=True)
    used, began = cpu(), time.perf_counter()
    with socket.create_connection(("127.0.0.1", int(port))) as connection, Path(target).open("wb", buffering=0) as file:
        while got := connection.recv_into(buffer):
            file.write(buffer[:got])
        os.fsync(file.fileno())
    say(seconds=time.perf_counter() - began, cpu=cpu() - used)


# --- libtorrent -------------------------------------------------------------------------------------------------------


def _session(port: int = 0) -> Any:
    import libtorrent as lt

    # As fast as it is on a LAN: its own way of saving others' bandwidth (uTP) is several times slower than TCP.
    return lt.session(
        {
            "listen_interfaces": f"127.0.0.1:{port}",
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "allow_multiple_connections_per_ip": True,
        }
    )


def torrent_make(path: str, torrent: str) -> None:
    """Write the torrent of a file, with pieces of 1 MiB."""
    import warnings

    import libtorrent as lt

    warnings.simplefilter("ignore", DeprecationWarning)  # what replaces them is not in older releases
    files = lt.file_storage()
    lt.add_files(files, path)
    made = lt.create_torrent(files, MIB, lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, str(Path(path).parent))
    Path(torrent).write_bytes(lt.bencode(made.generate()))
    say(ready=True)


def torrent_give(folder: str, torrent: str) -> None:
    """Seed it."""
    import libtorrent as lt

    session = _session()
    wanted = lt.add_torrent_params()
    wanted.ti, wanted.save_path, wanted.flags = lt.torrent_info(torrent), folder, lt.torrent_flags.seed_mode
    session.add_torrent(wanted)
    while not session.listen_port():
        time.sleep(0.01)
    used = cpu()
    say(port=session.listen_port())
    sys.stdin.readline()
    say(cpu=cpu() - used)
    os._exit(0)


def torrent_get(folder: str, torrent: str, *ports: str) -> None:
    """Fetch it from the seeds at these ports."""
    import libtorrent as lt

    session = _session()
    wanted = lt.add_torrent_params()
    wanted.ti, wanted.save_path = lt.torrent_info(torrent), folder
    handle = session.add_torrent(wanted)
    say(ready=True)
    used, began = cpu(), time.perf_counter()
    for port in ports:
        handle.connect_peer(("127.0.0.1", int(port)))
    while not handle.status().is_seeding:
        time.sleep(0.005)
    handle.flush_cache()
    say(seconds=time.perf_counter() - began, cpu=cpu() - used)
    os._exit(0)


SIDES = {
    "raw-give": raw_give,
    "raw-get": raw_get,
    "torrent-make": torrent_make,
    "torrent-give": torrent_give,
    "torrent-get": torrent_get,
}

if __name__ == "__main__":
    SIDES[sys.argv[1]](*sys.argv[2:])
