"""Why a connection ended or was not had: what a broker's words mean, and the one error among many. Pure."""

from __future__ import annotations

from typing import Final

from paho.mqtt.reasoncodes import ReasonCode

from agent.mqtt.messages import SessionError

#: Reason codes of CONNACK (MQTT 5, 3.2.2.2).
_BAD_VERSION: Final = 0x84
_BAD_CREDENTIALS: Final = frozenset({0x86, 0x87, 0x8C})
_NO_RETAIN: Final = 0x9A
_NO_QOS: Final = 0x9B


def refusal(code: str | ReasonCode | None) -> SessionError | None:
    """Why a broker does not let this box in, by its CONNACK; None where it does."""
    if not isinstance(code, ReasonCode) or not code.is_failure:
        return None
    value = code.value
    if value == _BAD_VERSION:
        return SessionError("version", str(code))
    if value in _BAD_CREDENTIALS:
        return SessionError("denied", str(code))
    if value in (_NO_RETAIN, _NO_QOS):
        return SessionError("no_retain", str(code))
    return SessionError("refused", str(code))


def session_error_of(group: BaseExceptionGroup[SessionError]) -> SessionError:
    """The first of the errors: what ended the connection, not what came of that."""
    error = _first(group)
    assert isinstance(error, SessionError)
    return error


def words_of(group: BaseExceptionGroup[Exception]) -> str:
    """What the system says of a connection that broke."""
    error = _first(group)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection broke"


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
