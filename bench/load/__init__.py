"""The load: three small clients in C, so that what is measured is the server.

They are compiled once a run, into a folder of its own, and run on the cores that the server does not have. Each tells
the CPU seconds it took itself: a client near one core was the bottleneck, and its figures say nothing about the server.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import LOAD_CORES, pinned

_SOURCES = Path(__file__).parent
_CLIENTS = ("sseload", "ssepub", "httpload")

Report = dict[str, Any]


class LoadError(Exception):
    """A client could not do its work: the measurement is void."""


class Load:
    """The compiled clients."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def http(self, port: int, target: str, *options: object) -> Report:
        """`httpload`'s report: each connection asks again as soon as it has its answer."""
        return self._run("httpload", port, target, options)

    def publish(self, port: int, target: str, *options: object) -> Report:
        """`ssepub`'s report."""
        return self._run("ssepub", port, target, options)

    def begin_publishing(self, port: int, target: str, *options: object) -> Running:
        """`ssepub`, at work while something else is done."""
        return Running(self._start("ssepub", port, target, options))

    @contextlib.contextmanager
    def streams(self, port: int, target: str, *options: object, ready_within: float = 60.0) -> Iterator[Running]:
        """Streams that are open when the context begins."""
        with tempfile.TemporaryDirectory() as folder:
            marker = Path(folder) / "ready"
            process = self._start("sseload", port, target, [*options, "-w", marker])
            try:
                deadline = time.monotonic() + ready_within
                while not marker.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise LoadError(f"streams did not open: {_said(process)}")
                    time.sleep(0.005)
                yield Running(process)
            finally:
                if process.poll() is None:
                    process.kill()
                process.communicate()

    def _run(self, name: str, port: int, target: str, options: Sequence[object]) -> Report:
        process = self._start(name, port, target, options)
        output, errors = process.communicate(timeout=600)
        if not output:
            raise LoadError(f"{name}: {errors.strip()}")
        report: Report = json.loads(output)
        return report

    def _start(self, name: str, port: int, target: str, options: Sequence[object]) -> subprocess.Popen[str]:
        command = [str(self._folder / name), "-p", str(port), "-u", target, *map(str, options)]
        return subprocess.Popen(pinned(LOAD_CORES, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Running:
    """A client at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def report(self, timeout: float = 600.0) -> Report:
        """What it reports when it has ended by its own bounds."""
        output, errors = self._process.communicate(timeout=timeout)
        if not output:
            raise LoadError(errors.strip())
        report: Report = json.loads(output)
        if "first_error" in report:
            raise LoadError(report["first_error"])
        return report


@contextlib.contextmanager
def compiled() -> Iterator[Load]:
    """The clients, compiled for this run. Raises `LoadError` where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise LoadError("the load clients are written in C: install a compiler (on Debian and Ubuntu: gcc libc6-dev)")
    with tempfile.TemporaryDirectory() as folder:
        for name in _CLIENTS:
            source, target = _SOURCES / f"{name}.c", Path(folder) / name
            subprocess.run([compiler, "-O2", "-o", str(target), str(source)], check=True)
        yield Load(Path(folder))


def _said(process: subprocess.Popen[str]) -> str:
    if process.poll() is None:
        return "too slow"
    output, errors = process.communicate()
    return (output + errors).strip()
