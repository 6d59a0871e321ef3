"""Logs: one structured line an event, on standard error; human on a terminal, JSON elsewhere.

Everything that logs through the standard library (libp2p, hypercorn) comes out in the same form. Every line that is
written while a job runs carries the job's id, on the box that asks and on the box that serves.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "human", "json"]

#: Libraries that report ordinary events of a network (a peer that went away) as errors.
_NOISY: Final = ("libp2p", "multiaddr", "hypercorn", "zeroconf", "noise", "async_service", "trio_websocket")
#: Fields whose value is never written, whoever logs them.
_SECRET: Final = frozenset({"seed", "identity_seed", "private_key", "api_key", "authorization", "password", "secret"})
#: A value from a peer or a client may be long; past this many characters it is cut.
_MAX_TEXT: Final = 2000


def configure(level: Level = "info", form: Format = "auto") -> None:
    """Set up logging for the process.

    Call it after the libraries that log are imported: importing libp2p 0.8.1 unhooks its loggers (utils/logging.py
    119-123), and what it then reports would reach standard error as bare text.
    """
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    last: list[Any] = (
        [
            structlog.processors.format_exc_info,
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _bounded, *last],
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.INFO if level == "debug" else logging.CRITICAL)
    logging.captureWarnings(True)


@contextmanager
def bound_job(job: str, traceparent: str | None = None) -> Iterator[None]:
    """Put the job's id (and its trace, if any) on every line that is logged inside the block.

    Tasks that are started inside the block inherit it; the block's own task loses it at the end, however it ends.
    """
    values = {"job": job} if traceparent is None else {"job": job, "traceparent": traceparent}
    with structlog.contextvars.bound_contextvars(**values):
        yield


def _bounded(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out secrets, and cut what is too long; the text of an exception stays whole."""
    for key, value in event.items():
        if key.lower() in _SECRET:
            event[key] = "(not logged)"
        elif isinstance(value, str) and len(value) > _MAX_TEXT and key != "exception":
            event[key] = f"{value[:_MAX_TEXT]}... ({len(value)} characters)"
    return event


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Spell out control characters: a name that a peer chose must not steer the operator's terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            kept = "\n\t" if key in ("exception", "stack") else ""
            event[key] = "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in value)
    return event
