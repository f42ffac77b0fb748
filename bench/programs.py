"""Programs under measurement: Swarm and its peers, each a process of its own on the server's core."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.machine import SERVER_CORE, cpu_seconds, pinned
from tests.free_port import free_port

_ROOT = Path(__file__).parent.parent
_START = 60.0
_STOP = 30.0


class ProgramError(Exception):
    """It did not start, or did not answer as it should."""


class Program:
    """A running server on 127.0.0.1."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
        self.name = name
        self.port = port
        self.process = psutil.Process(process.pid)
        self.headers: dict[str, str] = {}  # what each request says besides
        self._popen = process
        self._output = output

    def cpu(self) -> float:
        """CPU seconds so far, of all its processes."""
        return cpu_seconds(self._tree())

    def resident(self) -> int:
        """Bytes of memory that would be free without it: its processes' own, and their parts of what they share."""
        return sum(process.memory_full_info().pss for process in self._tree())

    def ask(self, method: str, target: str, body: object = None, status: int | None = None) -> Any:
        """One request; the answer's JSON. Raises `ProgramError` for another status than 2xx, or than `status`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = None if body is None else json.dumps(body)
            headers = self.headers | ({"Content-Type": "application/json"} if data else {})
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != status and (status is not None or not 200 <= answer.status <= 299):
            raise ProgramError(f"{self.name}: {method} {target}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text[:1] in {b"{", b"["} else None

    def said(self) -> str:
        """The end of what it has written."""
        return self._output.read_text(errors="replace")[-2_000:]

    def alive(self) -> bool:
        return self._popen.poll() is None

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] = SERVER_CORE,
    port: int | None = None,
) -> Iterator[Program]:
    """`{port}` in the command and in the environment's values becomes its port. Ready when `/health` answers."""
    port = free_port() if port is None else port
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        settings = {key: value.replace("{port}", str(port)) for key, value in (environment or {}).items()}
        with output.open("wb") as sink:
            process = subprocess.Popen(
                pinned(cores, [part.replace("{port}", str(port)) for part in command]),
                cwd=_ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        program = Program(name, process, port, output)
        try:
            _wait(program)
            yield program
        finally:
            _end(process)


def swarm(
    url: str,
    name: str = "Swarm",
    environment: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[Program]:
    """The embedded server, with everything on that a request passes: middlewares, metrics, a log line a request."""
    settings = {"HOST": "127.0.0.1", "PORT": "{port}", "DATABASE_URL": url, **(environment or {})}
    return running(name, [sys.executable, "-m", "server"], settings)


def peer(module: str, name: str, *options: str) -> contextlib.AbstractContextManager[Program]:
    """One of `bench.peers`."""
    return running(name, [sys.executable, "-m", f"bench.peers.{module}", "--port", "{port}", *options])


def _wait(program: Program) -> None:
    deadline = time.monotonic() + _START
    while True:
        if not program.alive() or time.monotonic() > deadline:
            raise ProgramError(f"{program.name} does not answer: {program.said()}")
        with contextlib.suppress(OSError, http.client.HTTPException, ProgramError):
            program.ask("GET", "/health")
            return
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
