"""Logs: one JSON object a line on stderr, or lines for people where stderr is a terminal. All of them pass here."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(level: str, *, pretty: bool | None = None) -> None:
    """Sets structlog up, and sends what other libraries log through it. `level` is a name such as INFO."""
    threshold = logging.getLevelNamesMapping()[level]
    if pretty is None:
        pretty = sys.stderr.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if pretty:
        structlog.configure(
            processors=[*shared, structlog.dev.ConsoleRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(threshold),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[*shared, structlog.processors.format_exc_info, _encode],
            wrapper_class=structlog.make_filtering_bound_logger(threshold),
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
            cache_logger_on_first_use=True,
        )
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(max(threshold, logging.INFO))
    # It says at INFO that it runs migrations, each time.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _encode(logger: Any, method: str, event: EventDict) -> bytes:
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:  # bytes that a client sent as something that is no UTF-8
        return json.dumps(event, default=str).encode()


class _Bridge(logging.Handler):
    """Passes what is logged with the standard library on to structlog."""

    _log = structlog.get_logger("logging")

    def emit(self, record: logging.LogRecord) -> None:
        try:  # a line that cannot be written must not end what wrote it
            self._log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
        except Exception:
            self.handleError(record)


def warn_unauthenticated(host: str) -> None:
    structlog.get_logger(__name__).warning(
        "no credentials are configured: whoever reaches this server reads and writes everything", host=host
    )
