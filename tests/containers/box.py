"""One box of a test: a container of a shipped image, hardened as compose does it, with volumes for what it keeps."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from fleet.document.bundle import write_bundle
from fleet.document.op import Op
from tests.containers import engine
from tests.harness import Fleet, model_path, peer_id_of, seed_of

MODEL: Final = "smollm2-135m-instruct"
KEY: Final = "a-key-for-tests-of-containers"
#: How long something may take on a machine that does other things too (seconds).
LIMIT: Final = 300.0
#: Nor is a token late that a busy machine takes seconds for, unless that is what a test is about.
_PATIENT: Final = {"connect": 10.0, "first_token": 120.0, "inter_token": 60.0}
#: A machine that runs tests is as slow and as busy as it is: where a job runs must not depend on that.
_ANY_RATE: Final = {"threshold": 0.0, "borrow_only_below": 0.0, "max_cpu": 1.0, "max_memory": 1.0}


def eventually(check: Callable[[], Any], what: str, limit: float = LIMIT) -> float:
    """Ask until it is so; the seconds that took. An agent that does not answer is asked again."""
    began = time.monotonic()
    seen: object = None
    while True:
        try:
            seen = check()
        except httpx.TransportError as error:
            seen = error
        else:
            if seen:
                return time.monotonic() - began
        if time.monotonic() - began > limit:
            raise AssertionError(f"not within {limit:.0f} s: {what}; last {seen!r}")
        time.sleep(0.1)


class Answer:
    """A streamed answer, read piece by piece."""

    def __init__(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {response.read().decode()}")
        self.served_by = response.headers["x-shoal-served-by"]
        self.text = ""
        self.error: dict[str, Any] | None = None
        self.done = False
        self._lines = response.iter_lines()

    def more(self) -> bool:
        """Read on to the next piece of text; False at the end."""
        for line in self._lines:
            if line == "data: [DONE]":
                self.done = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                self.error = chunk.get("error", self.error)
                piece = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else None
                if piece:
                    self.text += piece
                    return True
        return False

    def rest(self) -> None:
        """Read to the end, however it ends."""
        while self.more():
            pass


class Box:
    """A container that can be killed and started again; its volumes and its name in the network stay."""

    def __init__(
        self,
        name: str,
        network: Any,
        *,
        document: Mapping[str, bytes] | None = None,
        peers: Sequence[str] = (),
        holds: bool = False,
        image: str | None = None,
        memory: str = "1g",
        config: Mapping[str, Any] | None = None,
        state: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`document` is as `document_of` makes it, None for a box of no fleet; `peers` are names of boxes it dials.

        With `holds` it has the real model. `state` is a volume that is its state folder as it is: nothing is put there.
        """
        self.name = name
        self.alias = f"{name}-{engine.RUN}"
        self._network = network
        self.image = image or (engine.AGENT if holds else engine.SLIM)
        self.memory = memory
        self.peer_id = peer_id_of(name)
        whole: dict[str, Any] = {
            "name": name,
            "state_dir": "/var/lib/shoal",
            "routing": _ANY_RATE,
            "timeouts": _PATIENT,
            "http": {"listen": "0.0.0.0:8420", "api_key_file": "/etc/shoal/api-keys"},
            **{key: value for key, value in (config or {}).items() if key != "net"},
            "net": {
                "announce": [f"/dns4/{self.alias}/tcp/4210"],
                "mdns": False,
                "peers": [f"/dns4/{other}-{engine.RUN}/tcp/4210/p2p/{peer_id_of(other)}" for other in peers],
                **(config or {}).get("net", {}),
            },
        }
        if holds:
            whole["models"] = [{"path": f"/models/{model_path().name}", "name": MODEL}]
        settings = {"shoal.yaml": yaml.safe_dump(whole).encode(), "api-keys": KEY.encode()}
        self._env = {"SHOAL_LOG_FORMAT": "json", "SHOAL_API_KEY": KEY, **(env or {})}
        if state is None:
            state = engine.volume({"identity.seed": seed_of(name).hex().encode(), **(document or {})}, "/var/lib/shoal")
        self.volumes = {
            state: {"bind": "/var/lib/shoal", "mode": "rw"},
            engine.volume(settings, "/etc/shoal"): {"bind": "/etc/shoal", "mode": "ro"},
        }
        if holds:
            self.volumes[str(model_path().parent)] = {"bind": "/models", "mode": "ro"}
        self._container: Any = None
        self._http = httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    # --- its container ----------------------------------------------------------------------------------------------

    def start(self) -> Box:
        """Run a container of the image; returns at once."""
        from testcontainers.core.container import DockerContainer

        made = (
            DockerContainer(self.image, docker_client_kw={"timeout": LIMIT})
            .with_network(self._network)
            .with_network_aliases(self.alias)
        )
        made = made.with_exposed_ports(8420).with_envs(**self._env)
        for source, mount in self.volumes.items():
            made = made.with_volume_mapping(source, mount["bind"], mount["mode"])
        self._container = made.with_tmpfs_mount("/tmp", "size=64m,mode=1777").with_kwargs(
            hostname=self.alias,
            labels=dict(engine.LABELS),
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit=self.memory,
            pids_limit=512,
        )
        self._container.start()
        return self

    def ready(self) -> Box:
        """Wait until it takes jobs."""
        try:
            eventually(lambda: self.status("/readyz") == 200, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    @property
    def raw(self) -> Any:
        """The container as the Docker SDK has it, as it is now."""
        found = self._container.get_wrapped_container()
        found.reload()
        return found

    @property
    def pid(self) -> int:
        """The process of the container in the namespace of this machine."""
        return int(self.raw.attrs["State"]["Pid"])

    @property
    def ip(self) -> str:
        """Its address in the network of the fleet."""
        return str(self.raw.attrs["NetworkSettings"]["Networks"][self._network.name]["IPAddress"])

    def kill(self) -> None:
        """SIGKILL to everything in it, as a power cut; returns when it is gone."""
        raw = self.raw
        raw.kill("KILL")
        raw.wait(timeout=30)

    def again(self) -> Box:
        """Start the stopped container."""
        self.raw.start()
        return self

    def restart(self) -> None:
        """SIGTERM, which drains, and a new start."""
        self.raw.restart(timeout=40)

    def update(self, image: str) -> None:
        """What compose does with a new image: SIGTERM, which drains, and a new container with the same volumes."""
        old = self.raw
        old.stop(timeout=40)
        old.remove()
        self.image = image
        self.start()

    def remove(self) -> None:
        """End it; its volumes stay until the run is swept."""
        self._http.close()
        if self._container is not None:
            with contextlib.suppress(Exception):
                self.raw.remove(force=True)

    def run(self, *command: str) -> str:
        """What a command prints in the container."""
        done = self.raw.exec_run(list(command))
        text = str(done.output.decode("utf-8", "replace"))
        assert done.exit_code == 0, f"{' '.join(command)}: {text}"
        return text

    def shoal(self, *command: str) -> Any:
        """What `shoal COMMAND -o json` says in the container."""
        return json.loads(self.run("shoal", *command, "-o", "json"))

    def log(self) -> str:
        """The last lines of its log."""
        return str(self.raw.logs(tail=40).decode("utf-8", "replace"))

    # --- its agent --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where its API is published; another port after every start."""
        ports = self.raw.attrs["NetworkSettings"]["Ports"].get("8420/tcp")
        if not ports:
            raise httpx.ConnectError(f"{self.name} has no published port now")
        return f"http://127.0.0.1:{ports[0]['HostPort']}"

    def status(self, path: str) -> int:
        """The HTTP status of a GET."""
        return self._http.get(self.url + path).status_code

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        answer = self._http.get(self.url + path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: object) -> Any:
        """The JSON of a POST."""
        answer = self._http.post(self.url + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def offer(self, *ops: Op) -> None:
        """Hand it ops, as an admin's command does."""
        text = "".join(write_bundle(None, [op.raw for op in ops]))
        answer = self._http.post(f"{self.url}/v1/fleet/document/offer", content=text)
        assert answer.status_code == 200, answer.text

    def governance(self) -> frozenset[str]:
        """The ops of its document that rule the fleet."""
        answer = self._http.get(f"{self.url}/v1/fleet/document/ops", params={"facts": "0"})
        assert answer.status_code == 200, answer.text
        return frozenset(answer.text.splitlines())

    def connected(self) -> set[str]:
        """The names of the boxes it is connected to."""
        return {peer["name"] for peer in self.get("/v1/fleet/peers")["peers"] if peer["connected"]}

    def knows_model(self) -> bool:
        """Whether it can be asked for the model."""
        return any(model["id"] == MODEL for model in self.get("/v1/models")["data"])

    def ask(self, prompt: str = "What is a lighthouse for?", *, tokens: int = 8, limit: float = 60.0) -> httpx.Response:
        """A question that is answered whole."""
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json=_question(prompt, tokens),
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=limit,
        )

    @contextmanager
    def streaming(
        self,
        prompt: str = "Write a long story about a lighthouse keeper.",
        tokens: int = 1500,
        *,
        limit: float = 60.0,
        resume: bool = False,
    ) -> Iterator[Answer]:
        """A question whose answer streams in, and has begun; with `resume`, another box goes on with it where the first
        one fails in the middle."""
        body = _question(prompt, tokens) | {"stream": True}
        headers = {"X-Shoal-On-Interrupt": "resume" if resume else "error"}
        url = f"{self.url}/v1/chat/completions"
        with self._http.stream("POST", url, json=body, headers=headers, timeout=limit) as response:
            yield Answer(response)


def _question(prompt: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0}


def document_of(fleet: Fleet, members: Iterable[str]) -> dict[str, bytes]:
    """The files of a document that these boxes are members by, as it lies in a state folder. Once for all of them: two
    certificates of one number make a fleet stop believing its admin."""
    with tempfile.TemporaryDirectory() as folder:
        fleet.certify_in(Path(folder), *(peer_id_of(name) for name in members))
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@contextmanager
def boxes(
    network: Any,
    names: Sequence[str],
    *,
    holders: Sequence[str] = (),
    fleet: Fleet | None = None,
    config: Mapping[str, Any] | None = None,
    memory: str = "1g",
) -> Iterator[list[Box]]:
    """Boxes of one fleet that dial one another; ready, and connected to one another. They end with the block."""
    document = document_of(fleet or Fleet(), names)
    made = [
        Box(
            name,
            network,
            document=document,
            peers=[other for other in names if other != name],
            holds=name in holders,
            config=config,
            memory=memory,
        )
        for name in names
    ]
    try:
        for box in made:
            box.start()
        for box in made:
            box.ready()
        for box in made:
            others = set(names) - {box.name}
            eventually(lambda box=box, others=others: box.connected() >= others, f"{box.name} is connected to all")
        yield made
    finally:
        for box in made:
            box.remove()
