"""The MQTT side of one agent, put together: connection, jobs, pipelines, what the box says of itself, its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from agent.config import MqttConfig
from agent.mqtt.around import Agent, Box
from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.credentials import broker_of
from agent.mqtt.desk import JobDesk
from agent.mqtt.gauges import MqttGauges
from agent.mqtt.granted import Granted
from agent.mqtt.home_assistant import NO_PLATFORMS, PREFIX, birth_topic, device, discovery_topic
from agent.mqtt.intake import DeskLimits
from agent.mqtt.journal import Journal, JournalError, Opened
from agent.mqtt.messages import Incoming, Wanted
from agent.mqtt.outbox import Outbox
from agent.mqtt.sensors import Sensors
from agent.mqtt.status import status_payload
from agent.mqtt.topics import Topics, level_of, node_of

#: Changes of the status that follow one another faster than this are published together (seconds).
_COALESCE: Final = 1.0
#: The same for what the fleet document wants.
_COALESCE_DOCUMENT: Final = 0.2

#: Seconds between two tries to open the journal.
_OPEN_AGAIN: Final = 5.0

log = structlog.get_logger("shoal.mqtt")


class MqttRoom:
    """The MQTT side of one agent that has a broker (see `agent.mqtt.side`). Belongs to one trio run."""

    def __init__(self, config: MqttConfig, box: Box, agent: Agent, state_dir: Path) -> None:
        """Reads passwords and certificates; raises ConfigError."""
        self.counts: Final = Counts()
        self._config = config
        self._box = box
        self._agent = agent
        self._state_dir = state_dir
        self._broker = broker_of(config)
        self._client: MqttClient | None = None
        self._desk: JobDesk | None = None
        self._sensors: Sensors | None = None
        self._outbox: Outbox | None = None
        self._topics: Topics | None = None
        self._changed = trio.Event()
        self._wishes_changed = trio.Event()
        self._said: dict[str, bytes] = {}
        #: Entities that Home Assistant has of this box, or had, with their platforms.
        self._platforms: Mapping[str, str] = NO_PLATFORMS
        self._leaving = False
        #: Why the journal cannot be opened; empty where it can.
        self._trouble = ""

    # --- for the agent around it -------------------------------------------------------------------------------------

    def note_change(self) -> None:
        """Models came or went, or something else of the status changed."""
        self._changed.set()
        if self._agent.draining() and not self._leaving and self._client is not None:
            # What comes from now on is for other boxes, or for this one's next start.
            self._leaving = True
            self._client.subscriptions_changed()

    def note_document(self) -> None:
        """The fleet document changed."""
        self._wishes_changed.set()
        self._changed.set()

    @property
    def gauges(self) -> MqttGauges:
        """How much there is of what."""
        client, desk, outbox = self._client, self._desk, self._outbox
        if client is None or desk is None or outbox is None:
            return MqttGauges()
        return MqttGauges(client.state == "connected", desk.running, desk.waiting, len(outbox))

    def facts(self) -> Mapping[str, object]:
        """What this box says of it."""
        client, sensors, topics = self._client, self._sensors, self._topics
        if client is None or sensors is None or topics is None:
            return {
                "broker": str(self._broker.address),
                "state": "waiting",
                "problem": self._trouble or "it belongs to no fleet yet",
            }
        gauges = self.gauges
        granted = client.granted
        return {
            "broker": str(self._broker.address),
            "state": client.state,
            "problem": client.problem,
            "version": None if granted is None else {5: "5", 4: "3.1.1"}[granted.version],
            "fleet": topics.fleet,
            "node": topics.node,
            "refused_topics": dict(client.refused),
            "jobs": {"running": gauges.running, "waiting": gauges.waiting},
            "outbox": gauges.outbox,
            "counts": dict(self.counts.events),
            "pipelines": sensors.facts(),
        }

    # --- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled. To end well, `stop` it before: then the broker is told."""
        fleet = self._config.fleet or level_of(await self._agent.fleet())
        topics = self._topics = Topics(fleet, node_of(self._box.public_key))
        journal = Journal(self._state_dir)
        opened = await self._open(journal)
        if opened.set_aside is not None:
            log.error("mqtt.journal_set_aside", file=str(opened.set_aside), remedy="jobs in it are lost; see the disk")
        outbox = self._outbox = Outbox(self._config.outbox)
        client = self._client = MqttClient(
            self._broker,
            client_id=f"shoal-{topics.node}",
            availability=topics.availability,
            outbox=outbox,
            counts=self.counts,
        )
        desk = self._desk = JobDesk(
            self._box.name,
            topics,
            client,
            journal,
            self.counts,
            DeskLimits(
                self._config.running,
                self._config.waiting,
                self._config.requests_per_second,
                self._config.deadline,
                self._config.reply_to,
            ),
            run=self._agent.run,
            refused=self._agent.refused,
            default_model=self._default_model,
        )
        sensors = self._sensors = Sensors(topics, client, journal, self.counts, run=self._agent.run)
        client.on_gone = lambda entry, why: journal.sent(entry)
        for entry in opened.outbox:
            client.send(entry)
        desk.restore(opened.jobs)
        self._connect_parts(client, desk, sensors, topics, journal, opened.meta)
        log.info("mqtt.start", broker=str(self._broker.address), fleet=topics.fleet, node=topics.node)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.run)
                nursery.start_soon(desk.serve)
                nursery.start_soon(sensors.serve)
                nursery.start_soon(self._keep_wishes, sensors)
                nursery.start_soon(self._keep_said, client, desk, sensors, topics, journal)
                nursery.start_soon(client.run)
        finally:
            journal.close()

    async def _open(self, journal: Journal) -> Opened:
        """What is in the journal, as soon as the disk lets it be read: without it no job is taken, and the rest of the
        agent goes on."""
        while True:
            try:
                opened = await trio.to_thread.run_sync(journal.open)
            except JournalError as error:
                if error.message != self._trouble:
                    log.error("mqtt.journal_closed", reason=error.message)
                self._trouble = error.message
                await trio.sleep(_OPEN_AGAIN)
            else:
                self._trouble = ""
                return opened

    async def stop(self) -> None:
        """Tell the broker that this box goes, and disconnect; within 2 seconds. Jobs that run go on until cancelled."""
        if self._client is not None:
            await self._client.stop(b"offline")

    def _connect_parts(
        self,
        client: MqttClient,
        desk: JobDesk,
        sensors: Sensors,
        topics: Topics,
        journal: Journal,
        meta: Mapping[str, str],
    ) -> None:
        birth = birth_topic(PREFIX)
        before = _filters(meta.get("filters", ""))
        self._platforms = _texts(meta.get("platforms", ""))

        def subscriptions(granted: Granted) -> Sequence[Wanted]:
            # Claims have to come in one order. mosquitto 2.0.11 does not keep it for QoS 1: what waits until fewer
            # messages are on their way is overtaken by what comes then.
            wanted = [Wanted(topics.cancels), Wanted(topics.availabilities), Wanted(topics.leases, qos=0)]
            if not self._leaving:
                wanted.append(Wanted(topics.own_request, live=True))
            if self._config.ingress and not self._leaving:
                shared = granted.shares
                wanted.append(Wanted(topics.shared_request if shared else topics.fleet_request, live=True))
            if self._config.home_assistant:
                wanted.append(Wanted(birth, qos=0))
            wanted += sensors.subscriptions(granted)
            journal.remember("filters", json.dumps([one.filter for one in wanted]))
            return wanted

        def message(message: Incoming) -> None:
            topic = message.topic
            if topic == topics.fleet_request:
                desk.request(message, True)
            elif topic == topics.own_request:
                desk.request(message, False)
            elif topics.leased(topic) is not None:
                desk.claims.heard(message)
            elif topics.available(topic) is not None:
                desk.claims.availability(message)
            elif topics.cancelled(topic) is not None:
                desk.cancel(message)
            elif topic == birth and self._config.home_assistant:
                if message.payload == b"online" and not message.retain:
                    self._said.pop(discovery_topic(PREFIX, topics), None)
                    self._changed.set()
                message.settle()
            elif not sensors.message(message):
                self.counts.note("bad_topic" if not topic else "unexpected_topic")
                message.settle()

        def up() -> None:
            # What an earlier process subscribed to, the broker may have kept for this one.
            session = client.session
            if before and session is not None:
                session.unsubscribe([one for one in before if one not in client.subscribed])
                before.clear()
            self._said.clear()
            self._changed.set()
            desk.claims.went_up()

        client.subscriptions, client.on_message = subscriptions, message
        client.on_up, client.on_down = up, desk.claims.went_down
        desk.on_change = sensors.on_change = self._changed.set

    async def _keep_wishes(self, sensors: Sensors) -> None:
        while True:
            self._wishes_changed = trio.Event()
            sensors.set(self._agent.wishes(), self._agent.why_not)
            await self._wishes_changed.wait()
            await trio.sleep(_COALESCE_DOCUMENT)

    async def _keep_said(
        self, client: MqttClient, desk: JobDesk, sensors: Sensors, topics: Topics, journal: Journal
    ) -> None:
        """Publish the status and the description for Home Assistant, retained, whenever they are other than before."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            say = {
                topics.status: status_payload(
                    name=self._box.name,
                    peer_id=self._box.peer_id,
                    version=self._box.version,
                    state="draining" if self._agent.draining() else "serving",
                    models=self._agent.models(),
                    pipelines=[one.name for one in sensors.pipelines],
                    running=desk.running,
                    waiting=desk.waiting,
                )
            }
            if self._config.home_assistant:
                about = device(self._box.name, self._box.version, topics, sensors.pipelines, self._platforms)
                if about.platforms != self._platforms:
                    self._platforms = about.platforms
                    journal.remember("platforms", json.dumps(about.platforms))
                say[discovery_topic(PREFIX, topics)] = about.payload
            for topic, payload in say.items():
                if self._said.get(topic) == payload:
                    continue
                if client.send_now(topic, payload, qos=1, retain=True):
                    self._said[topic] = payload
                elif client.session is not None:
                    # There is too much on the way; it is said once there is less.
                    self._changed.set()
            await trio.sleep(_COALESCE)

    def _default_model(self) -> str | None:
        """The model for requests that name none."""
        if self._config.model is not None:
            return self._config.model
        return next((str(one["name"]) for one in self._agent.models() if one.get("state") != "failed"), None)


def _filters(text: str) -> list[str]:
    found = _plain(text)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _texts(text: str) -> dict[str, str]:
    found = _plain(text)
    return {key: one for key, one in found.items() if isinstance(one, str)} if isinstance(found, dict) else {}


def _plain(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
