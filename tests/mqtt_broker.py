"""A real mosquitto on a free port of loopback, and a client that is not this project's."""

from __future__ import annotations

import json
import os
import pwd
import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.harness import free_port

LIMIT = 30.0
#: The listener of a broker that lets everybody in.
OPEN = "allow_anonymous true"


def mosquitto() -> str:
    """The broker's binary; skips the test where there is none."""
    # Debian has it where the PATH of plain users does not lead.
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto mosquitto-clients")
    return found


class Broker:
    """One broker. `port` stays the same over restarts."""

    def __init__(self, folder: Path, config: str = "", listener: str = OPEN, keep: bool = False) -> None:
        """With `keep` it writes what it has to disk at every change, as a bridge needs it; that takes its time."""
        self._binary = mosquitto()
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.folder = folder / f"broker-{self.port}"
        self.folder.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._config = self.folder / "mosquitto.conf"
        user = pwd.getpwuid(os.getuid()).pw_name
        text = f"""
            user {user}
            persistence {"true" if keep else "false"}
            persistence_location {self.folder}/
            autosave_on_changes {"true" if keep else "false"}
            autosave_interval 1
            max_queued_messages 20000
            set_tcp_nodelay true
            {config}
            listener {self.port} 127.0.0.1
            {listener}
        """
        self._config.write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")

    def start(self) -> Broker:
        """Start it, and return when it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stdout=log, stderr=log)
        began = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() - began > LIMIT:
                    raise AssertionError(f"mosquitto did not start:\n{self.log()}") from None
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM: it saves what it has."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(LIMIT)

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text("utf-8", "replace")[-4000:]


@contextmanager
def broker(tmp_path: Path, config: str = "", listener: str = OPEN, keep: bool = False) -> Iterator[Broker]:
    """A broker for the block."""
    made = Broker(tmp_path, config, listener, keep)
    try:
        yield made.start()
    finally:
        made.kill()


class Requester:
    """paho as other people use it, with its own thread: what it subscribed to is in `messages`."""

    def __init__(
        self,
        port: int,
        *topics: str,
        version: int = 5,
        user: str | None = None,
        password: str | None = None,
        setup: Callable[[Client], None] = lambda client: None,
        host: str = "127.0.0.1",
        keep: str = "",
    ) -> None:
        """`keep` is a client id under which the broker keeps messages while this client is away."""
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self.seen: list[MQTTMessage] = []
        self._topics = topics
        self._ready: queue.Queue[str] = queue.Queue()
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=keep,
            protocol=MQTTProtocolVersion.MQTTv5 if version == 5 else MQTTProtocolVersion.MQTTv311,
        )
        self._client.reconnect_delay_set(1, 1)
        if user is not None:
            self._client.username_pw_set(user, password)
        self._version = version
        setup(self._client)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.put("")
        self._client.on_message = lambda _client, _data, message: self.messages.put(message)
        if keep:
            lasting = Properties(PacketTypes.CONNECT)
            lasting.SessionExpiryInterval = 600
            self._client.connect(host, port, clean_start=False, properties=lasting)
        else:
            self._client.connect(host, port)
        self._client.loop_start()
        problem = self._ready.get(timeout=LIMIT)
        assert not problem, problem

    def _on_connect(self, client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure or not self._topics:
            self._ready.put(str(code) if code.is_failure else "")
        else:
            client.subscribe([(topic, 1) for topic in self._topics])

    def publish(
        self,
        topic: str,
        payload: Any,
        *,
        reply_to: str | None = None,
        correlation: bytes | None = None,
        user: list[tuple[str, str]] | None = None,
        qos: int = 1,
        retain: bool = False,
        wait: bool = True,
    ) -> None:
        """Publish bytes, a text, or anything else as JSON."""
        properties = None
        if self._version == 5:
            properties = Properties(PacketTypes.PUBLISH)
            if reply_to is not None:
                properties.ResponseTopic = reply_to
            if correlation is not None:
                properties.CorrelationData = correlation
            if user:
                properties.UserProperty = user
        data = payload if isinstance(payload, str | bytes) else json.dumps(payload)
        info = self._client.publish(topic, data, qos, retain, properties)
        if wait and qos:
            info.wait_for_publish(LIMIT)
            assert info.is_published()

    def next(self, ending: str, limit: float = LIMIT, job: str | None = None) -> dict[str, Any]:
        """The next message whose topic ends so, as JSON, others being left behind; `job` is that of its payload."""
        return json.loads(self.next_message(ending, limit, job).payload)  # type: ignore[no-any-return]

    def next_message(self, ending: str, limit: float = LIMIT, job: str | None = None) -> MQTTMessage:
        """As `next`, the message itself."""
        deadline = time.monotonic() + limit
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                seen = "\n".join(f"{one.topic} {one.payload[:200]!r}" for one in self.seen[-20:])
                text = f"no message on …{ending} (job {job}) within {limit} s; there were:\n{seen}"
                raise AssertionError(text) from None
            self.seen.append(message)
            if message.topic.endswith(ending) and (job is None or json.loads(message.payload).get("job") == job):
                return message

    def quiet(self, ending: str, seconds: float = 0.5) -> bool:
        """Whether nothing comes on such a topic for a while."""
        try:
            self.next_message(ending, seconds)
        except AssertionError:
            return True
        return False

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def requester(broker: Broker, *topics: str, **more: Any) -> Iterator[Requester]:
    """A client for the block."""
    made = Requester(broker.port, *topics, **more)
    try:
        yield made
    finally:
        made.close()
