"""Logs: one structured line an event, on standard error; human on a terminal, JSON elsewhere.

Everything that logs through the standard library (libp2p, hypercorn) comes out in the same form. Every line that is
written while a job runs carries the job's id, on the box that asks and on the box that serves.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "human", "json"]

#: Libraries that report ordinary events of a network (a peer that went away) as errors.
_NOISY = ("libp2p", "multiaddr", "hypercorn", "zeroconf", "noise", "async_service", "trio_websocket")


def configure(level: Level = "info", form: Format = "auto") -> None:
    """Set up logging for the process; call it once, before the first line."""
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
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def bound_job(job: str, traceparent: str | None = None) -> Iterator[None]:
    """Put the job's id (and its trace, if any) on every line that is logged inside the block."""
    values = {"job": job} if traceparent is None else {"job": job, "traceparent": traceparent}
    with structlog.contextvars.bound_contextvars(**values):
        yield
