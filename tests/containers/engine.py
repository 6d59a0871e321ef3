"""The Docker Engine of a run: whether there is one, the images under test, and what belongs to this run alone."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Read when testcontainers is imported: no helper container that would have to be pulled, and a look ten times a second.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
os.environ.setdefault("TC_POOLING_INTERVAL", "0.1")

#: The images under test, as `make images` calls them.
AGENT: Final = os.environ.get("SHOAL_IMAGE", "shoal-agent:latest")
SLIM: Final = os.environ.get("SHOAL_SLIM_IMAGE", "shoal-slim:latest")
DEMO: Final = os.environ.get("SHOAL_DEMO_IMAGE", "shoal-demo:latest")

#: Everything that tests make carries this label, with the process that it is of, so that what a run that was killed has
#: left is known, and cleared away by the next one.
RUN_LABEL: Final = "shoal.run"
RUN: Final = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
LABELS: Final[Mapping[str, str]] = {RUN_LABEL: RUN}

#: The user of the images.
UID: Final = 10001


def docker(*arguments: str, check: bool = True, limit: float = 300.0) -> str:
    """What `docker ARGUMENTS` prints; AssertionError where it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def missing() -> str:
    """Why container tests cannot run on this machine, with the remedy; empty where they can."""
    try:
        import testcontainers  # noqa: F401
    except ImportError:
        return "testcontainers is not installed: make test-containers"
    try:
        version = docker("version", "--format", "{{.Server.Version}}", check=False, limit=20)
    except (OSError, subprocess.SubprocessError):
        version = ""
    if not version:
        return "no Docker Engine answers: docker/get-docker installs and starts one, or says why it cannot"
    for image in (AGENT, SLIM):
        if not docker("image", "inspect", "--format", "{{.Id}}", image, check=False):
            return f"the image {image} is not built: make images"
    return ""


@contextmanager
def newer(*images: str) -> Iterator[dict[str, str]]:
    """Another image for each of these, which does the same: its next version. They are gone after the block."""
    made = {image: f"{image.partition(':')[0]}:next-{RUN}" for image in images}
    for image, tag in made.items():
        lines = f"FROM {image}\nLABEL {RUN_LABEL}.version=next\n"
        build = ["docker", "build", "--quiet", "-t", tag, "-"]
        subprocess.run(build, input=lines, text=True, check=True, stdout=subprocess.DEVNULL, timeout=300)
    try:
        yield made
    finally:
        docker("rmi", "-f", *made.values(), check=False)


def sweep(label: str) -> None:
    """Remove every container, volume and network that carries a label, and nothing else."""
    for listed, remove in (
        (("ps", "-aq"), ("rm", "-fv")),
        (("volume", "ls", "-q"), ("volume", "rm", "-f")),
        (("network", "ls", "-q"), ("network", "rm")),
    ):
        found = docker(*listed, "--filter", f"label={label}", check=False).split()
        if found:
            docker(*remove, *found, check=False)


def sweep_dead() -> None:
    """Remove what runs have left that were killed on this machine; what belongs to one beside this stays."""
    shown = "--format", f'{{{{.Label "{RUN_LABEL}"}}}}'
    runs: set[str] = set()
    for listed in (("ps", "-a"), ("volume", "ls"), ("network", "ls")):
        runs.update(docker(*listed, "--filter", f"label={RUN_LABEL}", *shown, check=False).split())
    for run in runs:
        if not Path("/proc", run.partition("-")[0]).exists():
            sweep(f"{RUN_LABEL}={run}")


def client() -> Any:
    """The Docker SDK's client."""
    import docker as sdk

    return sdk.from_env(timeout=300)


def tar(files: Mapping[str, bytes], *, mode: int = 0o600, owner: int = UID) -> bytes:
    """An archive of files by their relative paths, and the folders that they are in, that belong to one user."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for folder in sorted({path.rpartition("/")[0] for path in files} - {""}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o700, owner, owner
            archive.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, owner, owner
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def volume(files: Mapping[str, bytes], at: str) -> str:
    """A new volume of this run with files in it, to be mounted where `at` is a folder of the image; its name."""
    sdk = client()
    made = sdk.volumes.create(name=f"shoal-{RUN}-{uuid.uuid4().hex[:8]}", labels=dict(LABELS))
    # A container that is never started: files are put into the volume through it, whoever runs the tests.
    filler = sdk.containers.create(
        SLIM, ["true"], volumes={made.name: {"bind": at, "mode": "rw"}}, labels=dict(LABELS), network_mode="none"
    )
    try:
        if files:
            assert filler.put_archive(at, tar(files))
    finally:
        filler.remove()
    return str(made.name)
