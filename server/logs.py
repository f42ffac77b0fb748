"""Logs: one JSON object a line on stderr, or lines for people where stderr is a terminal. All of them pass here."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any, BinaryIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from handlers.request_id import CURRENT

_encoder = msgspec.json.Encoder(enc_hook=str)


class LineWriter:
    """Writes lines to `stream`, those of one turn of the event loop together: a system call a line would cost more than
    all else about it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        """To be called where an event loop runs."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(line)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self._stream.write(b"\n".join(lines) + b"\n")
        self._stream.flush()


# Where lines go that are one JSON object each and need no processor; None while they are for people, or not wanted.
_lines: LineWriter | None = None


def lines() -> LineWriter | None:
    """For what is logged at each request, at INFO. None where structlog is to be asked as for everything else."""
    return _lines


def configure(level: str, *, pretty: bool | None = None) -> None:
    """Sets structlog up, and sends what other libraries log through it. `level` is a name such as INFO."""
    global _lines  # noqa: PLW0603 (logs are the process's own)
    threshold = logging.getLevelNamesMapping()[level]
    if pretty is None:
        pretty = sys.stderr.isatty()
    shared: list[Processor] = [
        _name_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if pretty:
        structlog.configure(
            # Plain: other formatters, where they are installed, show what the variables hold.
            processors=[*shared, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)],
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
    _lines = None if pretty or threshold > logging.INFO else LineWriter(sys.stderr.buffer)
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(max(threshold, logging.INFO))
    # It says at INFO that it runs migrations, each time.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _name_request(logger: Any, method: str, event: EventDict) -> EventDict:
    current = CURRENT.get(None)
    if current is not None:
        event.setdefault("request_id", current)
    return event


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
