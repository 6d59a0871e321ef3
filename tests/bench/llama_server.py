"""llama.cpp's own server, of the commit that the installed llama-cpp-python carries, to measure against.

The source distribution of llama-cpp-python contains the server. It is built once into the cache, with the build options
that the installed package recorded, and then runs on the installed package's own libllama and libggml: both sides of a
comparison execute the same file.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from tests.harness import free_port
from tests.models import cache_dir

#: Options of ggml that decide which instructions its kernels use and how its threads meet.
_GGML_OPTIONS: Final = re.compile(
    r"^set\((GGML_(?:NATIVE|OPENMP|LLAMAFILE|CPU_REPACK|CPU_ALL_VARIANTS|BACKEND_DL|BLAS|LTO|STATIC|SSE42|F16C|FMA"
    r'|BMI2|AVX\w*|AMX\w*)) "(\w*)"\)$',
    re.MULTILINE,
)
#: The server alone: no tests, no web page (whose build wants npm or a download), no TLS.
_OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_CCACHE=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "APP", "UI")),
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
_START_LIMIT: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1


class ServerMissingError(Exception):
    """llama-server cannot be had here; the message says why and what to do."""


# --- building --------------------------------------------------------------------------------------------------------


def ggml_options(config: str) -> dict[str, str]:
    """The build options of the kernels, from the text of a package's ggml-config.cmake."""
    return dict(_GGML_OPTIONS.findall(config))


def same_commit(installed: str, source: str) -> bool:
    """Whether a short commit, as the package's build recorded it, is that of the sources."""
    short = installed.removesuffix("-dirty")
    return len(short) >= 7 and source.startswith(short)


def binary() -> Path:
    """llama-server of the installed commit; built on first use, some ten minutes on two cores, and kept in the cache.

    Raises ServerMissingError.
    """
    version = importlib.metadata.version("llama-cpp-python")
    home = cache_dir() / f"llama-server-{version}"
    config = _recorded_build()
    recorded = re.search(r'GGML_BUILD_COMMIT "([^"]*)"', config)
    commit = recorded[1] if recorded else ""
    options = [*_OPTIONS, *(f"-D{name}={value}" for name, value in sorted(ggml_options(config).items()))]
    found, stamp = home / "build/bin/llama-server", home / "built.json"
    wanted = json.dumps({"commit": commit, "options": options}, indent=1)
    if found.exists() and stamp.exists() and stamp.read_text() == wanted:
        return found
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise ServerMissingError(f"{tool} is needed to build llama-server: apt-get install cmake g++ ninja-build")
    home.mkdir(parents=True, exist_ok=True)
    source_commit = _fetch(version, home)
    if not same_commit(commit, source_commit):
        raise ServerMissingError(
            f"the installed llama-cpp-python was built from llama.cpp {commit or 'of no recorded commit'}, its source"
            f" distribution has {source_commit[:7]}: install it with --no-binary llama-cpp-python"
        )
    _build(home, [*options, f"-DLLAMA_BUILD_COMMIT={source_commit[:7]}"])
    stamp.write_text(wanted)
    return found


def _recorded_build() -> str:
    path = _site() / "lib/cmake/ggml/ggml-config.cmake"
    try:
        return path.read_text()
    except OSError as error:
        raise ServerMissingError(
            f"llama-cpp-python does not say how it was built ({path}: {error.strerror}): install it with --no-binary"
            " llama-cpp-python"
        ) from None


def _site() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ServerMissingError("llama-cpp-python is not installed: pip install 'shoal[engine]'")
    return Path(spec.origin).parents[1]


def _libraries() -> Path:
    return _site() / "llama_cpp/lib"


def _fetch(version: str, home: Path) -> str:
    """Unpack llama.cpp of the source distribution into `home`/source; returns its commit."""
    commit = home / "commit"
    if commit.exists():
        return commit.read_text()
    print(f"fetching the source distribution of llama-cpp-python {version}", flush=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        _run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
             "--dest", folder, f"llama-cpp-python=={version}"]
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (root,) = (path for path in Path(folder).iterdir() if path.is_dir())
        if not (root / "vendor/llama.cpp/tools/server/server.cpp").exists():
            raise ServerMissingError(f"the source distribution of {version} lacks vendor/llama.cpp/tools/server")
        head = (root / ".git/modules/vendor/llama.cpp/HEAD").read_text().strip()
        shutil.rmtree(home / "source", ignore_errors=True)
        (root / "vendor/llama.cpp").rename(home / "source")
    commit.write_text(head)
    return head


def _build(home: Path, options: Sequence[str]) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    print(f"building llama-server in {home}: {' '.join(options)}", flush=True)
    _run(["cmake", "-S", str(home / "source"), "-B", str(home / "build"), *generator, *options])
    jobs = str(len(os.sched_getaffinity(0)))
    said = -1

    def progress(line: str) -> None:
        nonlocal said
        if step := re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line):
            percent = int(step[1]) * 100 // int(step[2] or 100)
            if percent // 10 > said:
                said = percent // 10
                print(f"  {percent} %", flush=True)

    command = ["cmake", "--build", str(home / "build"), "--target", "llama-server", "--parallel", jobs]
    _run(["nice", "-n", "19", *command] if shutil.which("nice") else command, progress)


def _run(command: Sequence[str], on_line: Callable[[str], None] = lambda line: None) -> None:
    """Run a command; raises ServerMissingError with the end of its output where it fails."""
    last: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line)
            last = [*last[-20:], line]
    if process.returncode:
        raise ServerMissingError(f"{' '.join(command[:4])}… failed:\n{''.join(last)}")


# --- running ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(
    model: Path, *, slots: int, context_tokens: int, threads: int, environment: dict[str, str]
) -> Iterator[int]:
    """Run the server on a model, ready to answer; gives the port on loopback it listens on."""
    port = free_port()
    command = [
        str(binary()), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--ctx-size", str(context_tokens), "--parallel", str(slots), "--kv-unified", "--cache-ram", "0",
        "--threads", str(threads), "--threads-batch", str(threads), "--batch-size", "512", "--ubatch-size", "512",
    ]  # fmt: skip
    environment = {**os.environ, **environment, "LD_LIBRARY_PATH": str(_libraries())}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=_die_with_parent
        )
        try:
            _until_ready(process, port, log)
            _assert_shared_code(process.pid)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _until_ready(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        time.sleep(0.05)  # it says nowhere but here that it is ready
    log.seek(0)
    raise ServerMissingError(f"llama-server does not start:\n{log.read()[-3000:].decode(errors='replace')}")


def _assert_shared_code(pid: int) -> None:
    """The server runs the same libraries, byte for byte, as the engine it is compared with."""
    mapped = set(re.findall(r"(/\S*lib(?:llama|ggml\S*)\.so\S*)", Path(f"/proc/{pid}/maps").read_text()))
    own = {path for path in mapped if Path(path).parent != _libraries()}
    assert mapped, "llama-server maps no libllama"
    assert not own, f"llama-server runs other libraries than llama-cpp-python: {sorted(own)}"


# --- asking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """What the server's last event says: tokens, and its own milliseconds for prefill and decode; and all texts."""

    texts: tuple[str, ...]
    prompt_tokens: int
    tokens: int
    prefill_ms: float
    decode_ms: float


async def ask(port: int, prompt: str, tokens: int, on_event: Callable[[], None] = lambda: None) -> Answered:
    """Stream one greedy completion over a bare socket; `on_event` is called as each event arrives.

    As lean as a client can be: nothing is parsed before the last event, so that what is measured is the server. The
    sampler is the cheapest greedy one the server has; by default it would run nine.
    """
    body = json.dumps(
        {"prompt": prompt, "n_predict": tokens, "stream": True, "cache_prompt": False, "samplers": ["top_k"],
         "top_k": 1, "temperature": 0}
    ).encode()  # fmt: skip
    head = (
        "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(head.encode() + body)
        events = Events()
        while data := await stream.receive_some(65536):
            for _ in range(events.feed(data)):
                on_event()
    return events.end()


class Events:
    """Counts server-sent events in the bytes of an answer as they come. No I/O."""

    _MARK: Final = b"data: "

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> int:
        """How many events began in `data`, one cut in two counted once."""
        start = max(0, len(self._bytes) - len(self._MARK) + 1)
        self._bytes += data
        return self._bytes.count(self._MARK, start)

    def end(self) -> Answered:
        """What the answer came to. Raises ValueError where it is none."""
        if not self._bytes.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"llama-server refused: {bytes(self._bytes[:500])!r}")
        events = [json.loads(line[6:]) for line in self._bytes.split(b"\n") if line.startswith(self._MARK + b"{")]
        if not events or not events[-1].get("stop"):
            raise ValueError(f"llama-server broke off: {bytes(self._bytes[-500:])!r}")
        timings = events[-1]["timings"]
        return Answered(
            tuple(event["content"] for event in events[:-1]),
            timings["prompt_n"],
            events[-1]["tokens_predicted"],
            timings["prompt_ms"],
            timings["predicted_ms"],
        )
