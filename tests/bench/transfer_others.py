"""The tools that a transfer is compared with: each copies one file over loopback and says how fast and at what cost."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as Xml
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.harness import free_port

LIMIT = 600.0


#: To be called when a copy begins.
Begin = Callable[[], None]


class MissingToolError(Exception):
    """The tool is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Run:
    """One copy of one file: bytes a second, and seconds of CPU of both ends for each byte."""

    speed: float
    cpu: float


def measured(size: int, seconds: float, cpu: float) -> Run:
    return Run(size / seconds, cpu / size)


class Side:
    """One end, as a process of `tests.bench.transfer_sides`."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.transfer_sides", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise RuntimeError("a side of the transfer ended before its time")
        found: dict[str, Any] = json.loads(text)
        return found

    def finish(self) -> dict[str, Any]:
        """Tell it to end; its last line."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        try:
            return self.line()
        finally:
            self.end()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def raw(source: Path, target: Path, begin: Begin) -> Run:
    """sendfile on one end, reading and writing on the other, and the disk asked to keep it: nothing is checked."""
    giver = Side("raw-give", source)
    try:
        begin()
        getter = Side("raw-get", target, giver.line()["port"])
        getter.line()
        got = getter.line()
        getter.end()
        given = giver.finish()
    finally:
        giver.end()
    return measured(source.stat().st_size, got["seconds"], got["cpu"] + given["cpu"])


def libtorrent(source: Path, target: Path, begin: Begin, *, seeds: int) -> Run:
    """BitTorrent over TCP, with pieces of 1 MiB."""
    try:
        import libtorrent  # noqa: F401
    except ImportError:
        raise MissingToolError("pip install 'shoal[bench]'") from None
    target.mkdir()
    torrent = target.with_suffix(".torrent")
    maker = Side("torrent-make", source, torrent)
    maker.line()
    maker.end()
    givers = [Side("torrent-give", source.parent, torrent) for _ in range(seeds)]
    try:
        ports = [giver.line()["port"] for giver in givers]
        begin()
        getter = Side("torrent-get", target, torrent, *ports)
        getter.line()
        got = getter.line()
        getter.end()
        cpu = got["cpu"] + sum(giver.finish()["cpu"] for giver in givers)
    finally:
        for giver in givers:
            giver.end()
    return measured(source.stat().st_size, got["seconds"], cpu)


# --- curl from nginx --------------------------------------------------------------------------------------------------


def tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingToolError(f"apt-get install {package}")
    return found


_NGINX = """
daemon off; user {user}; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def curl(source: Path, target: Path, begin: Begin) -> Run:
    """HTTP without TLS: nothing is checked, and nothing hidden."""
    nginx, client = tool("nginx", "nginx-light"), tool("curl", "curl")
    folder = target.with_suffix(".nginx")
    folder.mkdir()
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port, root=source.parent, user=getpass.getuser()))
    with running([nginx, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]) as server:
        until(lambda: _answers(f"http://127.0.0.1:{port}/"))
        begin()
        before, began = cpu_of(server), time.perf_counter()
        child = subprocess.Popen([client, "-sf", "-o", str(target), f"http://127.0.0.1:{port}/{source.name}"])
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"curl ended with {child.returncode}")
        cpu = cpu_of(server) - before + used.ru_utime + used.ru_stime
    return measured(source.stat().st_size, seconds, cpu)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=1)
    except httpx.HTTPError:
        return False
    return True


# --- syncthing --------------------------------------------------------------------------------------------------------


def syncthing(source: Path, target: Path, begin: Begin) -> Run:
    """Two syncthings that share a folder; timed from when the one knows what the other has."""
    program = tool("syncthing", "syncthing")
    homes = [target.with_suffix(f".home{n}") for n in range(2)]
    folders = [target.with_suffix(f".shared{n}") for n in range(2)]
    ports, guis = [free_port(), free_port()], [free_port(), free_port()]
    for home, folder in zip(homes, folders, strict=True):
        folder.mkdir()
        subprocess.run([program, "generate", "--home", home], check=True, capture_output=True)
    ids = [_read(home).find("device").get("id") for home in homes]  # type: ignore[union-attr]
    for n, home in enumerate(homes):
        _configure(home, folders[n], ids, ports, n, guis[n])  # type: ignore[arg-type]
    os.link(source, folders[0] / source.name)
    size = source.stat().st_size

    def status(n: int) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(
            f"http://127.0.0.1:{guis[n]}/rest/db/status?folder=bench", headers={"X-API-Key": "bench"}, timeout=5
        ).json()
        return found

    command = [program, "serve", "--no-browser", "--no-restart", "--no-upgrade", "--home"]
    with running([*command, homes[0]]) as giver:
        until(lambda: _answers(f"http://127.0.0.1:{guis[0]}/") and status(0).get("localBytes") == size)
        with running([*command, homes[1]]) as getter:
            until(lambda: _answers(f"http://127.0.0.1:{guis[1]}/"))
            begin()
            until(lambda: status(1).get("globalBytes") == size)
            before, began = cpu_of(giver) + cpu_of(getter), time.perf_counter()
            missing = status(1)["needBytes"]
            until(lambda: status(1)["needBytes"] == 0, step=0.05)
            seconds = time.perf_counter() - began
            cpu = cpu_of(giver) + cpu_of(getter) - before
    if (folders[1] / source.name).stat().st_size != size:
        raise RuntimeError("syncthing did not copy the file")
    # What had come before the first look is not counted.
    return measured(missing or size, seconds, cpu)


def _read(home: Path) -> Xml.Element:
    return Xml.parse(home / "config.xml").getroot()


def _configure(home: Path, folder: Path, ids: Sequence[str], ports: Sequence[int], own: int, gui: int) -> None:
    root = _read(home)
    for old in [*root.findall("folder"), *root.findall("device")]:
        root.remove(old)
    shared = Xml.SubElement(root, "folder", id="bench", path=str(folder), type="sendreceive", rescanIntervalS="3600")
    for identifier, port in zip(ids, ports, strict=True):
        Xml.SubElement(shared, "device", id=identifier)
        device = Xml.SubElement(root, "device", id=identifier, compression="never")
        Xml.SubElement(device, "address").text = f"tcp://127.0.0.1:{port}"
    page, options = root.find("gui"), root.find("options")
    assert page is not None
    assert options is not None
    for name, text in (("address", f"127.0.0.1:{gui}"), ("apikey", "bench")):
        _set(page, name, text)
    _set(options, "listenAddress", f"tcp://127.0.0.1:{ports[own]}")
    _set(options, "urAccepted", "-1")
    for name in ("globalAnnounce", "localAnnounce", "relays", "nat", "crashReporting"):
        _set(options, f"{name}Enabled", "false")
    Xml.ElementTree(root).write(home / "config.xml")


def _set(parent: Xml.Element, name: str, text: str) -> None:
    child = parent.find(name)
    if child is None:
        child = Xml.SubElement(parent, name)
    child.text = text


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def running(command: Sequence[object]) -> Iterator[psutil.Process]:
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_of(process: psutil.Process) -> float:
    """Seconds of CPU of a process and its children so far."""
    return sum(
        (one.cpu_times().user + one.cpu_times().system for one in (process, *process.children(recursive=True))), 0.0
    )


def until(holds: Callable[[], bool], limit: float = LIMIT, step: float = 0.02) -> None:
    began = time.monotonic()
    while True:
        with suppress(httpx.HTTPError, ValueError):
            if holds():
                return
        if time.monotonic() - began > limit:
            raise TimeoutError("a tool did not do what the bench waits for")
        time.sleep(step)
