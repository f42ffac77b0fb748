"""Databases made before they are asked for: PostgreSQL takes a fifth of a second to copy one."""

from __future__ import annotations

import itertools
import queue
import threading
from types import TracebackType
from typing import Self

from tests.postgres_server import PostgresServer

_AHEAD = 3  # copies that lie ready
_PATIENCE = 60.0  # seconds; one copy takes a fraction of one


class PreparedDatabases:
    """Copies of a template, made and dropped by a thread of its own. To be used as a context."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._numbers = itertools.count()
        self._ready: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # what to drop; "" asks for a copy
        self._thread = threading.Thread(target=self._run, name="prepare databases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for _ in range(_AHEAD):
            self._work.put("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._work.put(None)
        self._thread.join(_PATIENCE)

    def take(self) -> str:
        """The name of a fresh copy, which is the caller's until it is given back."""
        self._work.put("")
        taken = self._ready.get(timeout=_PATIENCE)
        if isinstance(taken, BaseException):
            raise taken
        return taken

    def give_back(self, name: str) -> None:
        """The database is dropped some time soon, whoever is still connected to it."""
        self._work.put(name)

    def _run(self) -> None:
        while (name := self._work.get()) is not None:
            try:
                if name:
                    self._server.drop_database(name)
                else:
                    name = f"test_{next(self._numbers)}"
                    self._server.create_database(name, self._template)
                    self._ready.put(name)
            except Exception as error:
                self._ready.put(error)  # raised where the next one is asked for
