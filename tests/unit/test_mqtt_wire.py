"""Bytes of a broker: packets are cut to their limits, and no bytes at all make a session do anything but end."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mqtt.granted import KEEP_ALIVE, WINDOW, granted
from agent.mqtt.messages import Incoming, Options, SessionError
from agent.mqtt.session import Session
from agent.mqtt.wire import Bounds, Pipe, WireError


def packet(first: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray()
    while True:
        length, low = divmod(length, 128)
        digits.append(low | (0x80 if length else 0))
        if not length:
            return bytes([first]) + bytes(digits) + body


@given(st.lists(st.tuples(st.sampled_from([0x20, 0x30, 0x32, 0x90, 0xD0]), st.binary(max_size=300))), st.data())
def test_packets_within_their_limits_pass_unchanged_however_they_are_cut(
    packets: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(packet(first, body) for first, body in packets)
    bounds, out, at = Bounds(300, 300), bytearray(), 0
    while at < len(whole):
        step = data.draw(st.integers(1, 50))
        out += bounds.take(whole[at : at + step])
        at += step
    assert out == whole


@given(st.integers(301, 5000), st.integers(1, 700))
def test_a_message_that_is_too_long_is_cut_and_what_follows_is_whole(size: int, step: int) -> None:
    whole = packet(0x30, b"x" * size) + packet(0xD0, b"")
    bounds, out = Bounds(300, 10), bytearray()
    for at in range(0, len(whole), step):
        out += bounds.take(whole[at : at + step])
    assert out == packet(0x30, b"x" * 300) + packet(0xD0, b"")


@pytest.mark.parametrize(
    "data", [packet(0x20, b"x" * 11), b"\x30\xff\xff\xff\xff\x01", packet(0x34, b"\0\1t\0\1\0x"), packet(0x36, b"x")]
)
def test_a_packet_past_its_limit_ends_the_connection(data: bytes) -> None:
    with pytest.raises(WireError):
        Bounds(300, 10).take(data)


def test_a_pipe_gives_what_was_fed_and_blocks_nobody() -> None:
    pipe = Pipe()
    with pytest.raises(BlockingIOError):
        pipe.recv(1)
    pipe.feed(packet(0xD0, b"") * 2)
    assert (pipe.recv(3), pipe.waiting, pipe.recv(9)) == (b"\xd0\x00\xd0", 1, b"\x00")
    assert pipe.send(b"abc") == 3
    assert bytes(pipe.out) == b"abc"


class Said:
    ReceiveMaximum = 0
    MaximumPacketSize = 1
    MaximumQoS = 2
    RetainAvailable = 0
    SharedSubscriptionAvailable = 0
    ServerKeepAlive = 0


def test_a_broker_cannot_talk_a_box_into_uselessness() -> None:
    found = granted(5, True, Said())
    assert (found.window, found.most_packet, found.most_qos, found.keep_alive) == (1, 1024, 1, KEEP_ALIVE)
    assert not found.retains
    assert not found.shares
    plain = granted(5, False, object())
    assert (plain.window, plain.retains, plain.shares) == (WINDOW, True, True)


#: CONNACK of MQTT 5 without properties, and a PUBLISH of the topic "t" with the payload "hi".
CONNACK = packet(0x20, b"\x00\x00\x00")
PUBLISH = packet(0x32, b"\x00\x01t\x00\x07\x00hi")


def session_that_reads(data: bytes, version: int = 5) -> tuple[list[Incoming], str]:
    """What a session makes of a broker that sends these bytes and goes: the messages, and how it ended."""
    found: list[Incoming] = []

    async def main() -> str:
        ours, theirs = trio.testing.memory_stream_pair()
        session = Session(ours, Options("id", "w", version), found.append)
        async with trio.open_nursery() as nursery:

            async def broker() -> None:
                await theirs.receive_some()
                await theirs.send_all(data)
                await theirs.send_eof()

            nursery.start_soon(broker)
            try:
                await session.run()
            except SessionError as error:
                return error.failure
        return "none"

    return found, trio.run(main)


def test_a_session_reads_what_comes_after_the_broker_has_let_it_in() -> None:
    found, ended = session_that_reads(CONNACK + PUBLISH)
    assert [(one.topic, one.payload, one.qos) for one in found] == [("t", b"hi", 1)]
    assert ended == "lost"


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"", "version"),
        (packet(0x20, b"\x00\x01"), "version"),
        (packet(0x20, b"\x00\x84\x00"), "version"),
        (packet(0x20, b"\x00\x87\x00"), "denied"),
        (packet(0x20, b"\x00\x9a\x00"), "no_retain"),
        (packet(0x20, b"\x00\x97\x00"), "refused"),
        (packet(0x20, b"x" * 100_000), "version"),
        (CONNACK + packet(0xE0, b"\x8b\x00"), "lost"),
    ],
)
def test_how_a_connection_ends_says_what_to_try_next(data: bytes, failure: str) -> None:
    assert session_that_reads(data)[1] == failure


def test_no_more_is_sent_than_the_broker_has_said_it_takes() -> None:
    """CONNACK with a Receive Maximum of 2: of five messages two go out, then one more for each that is acknowledged."""

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        session = Session(ours, Options("id", "w"), lambda message: None)
        refused: list[str] = []

        async def published() -> list[bytes]:
            await trio.testing.wait_all_tasks_blocked()
            data, found = bytes(await theirs.receive_some()), []
            while data:
                size = 2 + data[1]
                if data[0] >> 4 == 3:
                    found.append(data[size - 1 : size])
                data = data[size:]
            return found

        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send_all, packet(0x20, b"\x00\x00\x03\x21\x00\x02"))
            granted = await nursery.start(session.run)
            assert granted.window == 2
            await theirs.receive_some()
            for number in b"abcde":
                session.publish("t", bytes([number]), done=refused.append)
            assert await published() == [b"a", b"b"]
            await theirs.send_all(packet(0x40, b"\x00\x01") + packet(0x40, b"\x00\x02\x87"))
            assert await published() == [b"c", b"d"]
            assert refused == ["", "Not authorized"]
            nursery.cancel_scope.cancel()

    trio.run(main)


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(st.one_of(st.binary(max_size=60), st.builds(packet, st.integers(0, 255), st.binary(max_size=60)))),
)
def test_no_bytes_of_a_broker_do_anything_but_end_the_session(let_in: bool, pieces: list[bytes]) -> None:
    _, ended = session_that_reads((CONNACK if let_in else b"") + b"".join(pieces))
    assert ended in ("lost", "version", "denied", "no_retain", "refused")


#: CONNACK of MQTT 5, then two messages with the same number: a broker uses it again once it is acknowledged.
FIRST = packet(0x32, b"\x00\x01t\x00\x07\x00one")
SECOND = packet(0x32, b"\x00\x01t\x00\x07\x00two")


def test_who_acknowledges_twice_does_not_acknowledge_what_came_under_the_same_number() -> None:
    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        found: list[Incoming] = []
        session = Session(ours, Options("id", "w"), found.append)

        async def acknowledged() -> int:
            with trio.move_on_after(1):
                return bytes(await theirs.receive_some()).count(packet(0x40, b"\x00\x07"))
            return 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send_all, CONNACK)
            await nursery.start(session.run)
            await theirs.receive_some()
            await theirs.send_all(FIRST)
            await trio.testing.wait_all_tasks_blocked()
            found[0].settle()
            assert await acknowledged() == 1
            await theirs.send_all(SECOND)
            await trio.testing.wait_all_tasks_blocked()
            found[0].settle()
            assert await acknowledged() == 0
            found[1].settle()
            assert await acknowledged() == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_link_that_is_slow_is_not_taken_for_one_that_is_dead() -> None:
    """A message of 1 MiB takes ten minutes; what is acknowledged meanwhile is nothing."""

    async def main() -> None:
        ours, theirs = trio.testing.lockstep_stream_pair()
        session = Session(ours, Options("id", "w"), lambda message: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.receive_some)
            nursery.start_soon(theirs.send_all, CONNACK)
            await nursery.start(session.run)
            session.publish("t", b"x" * 1024 * 1024)
            session.publish("t", b"y" * 1024)
            assert session.is_behind
            nursery.start_soon(session.caught_up)
            taken = 0
            while taken < 1024 * 1024 + 1024:
                await trio.sleep(9)
                taken += len(await theirs.receive_some(16 * 1024))
            assert not session.is_behind
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_link_that_takes_nothing_is() -> None:
    async def main() -> None:
        ours, theirs = trio.testing.lockstep_stream_pair()
        session = Session(ours, Options("id", "w"), lambda message: None)
        with pytest.raises(SessionError) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(theirs.receive_some)
                nursery.start_soon(theirs.send_all, CONNACK)
                await nursery.start(session.run)
                session.publish("t", b"x" * 1024 * 1024)
        assert caught.value.failure == "lost"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=False)


def test_messages_say_for_which_subscription_they_were_sent() -> None:
    numbered = packet(0x30, b"\x00\x01t\x04\x0b\x07\x0b\x09hi")
    found, _ = session_that_reads(CONNACK + numbered + PUBLISH)
    assert [one.numbers for one in found] == [{7, 9}, set()]
