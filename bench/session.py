"""What the measurements of one run share: the load clients, the private databases, how often each is repeated."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.load import Load, compiled
from bench.machine import LOAD_CORES, Watch
from bench.programs import Program
from tests.postgres_server import PostgresServer


@dataclass
class Session:
    """`quick` is for trying a measurement out: fewer and shorter rounds, whose figures are not to be quoted."""

    load: Load
    folder: Path
    postgres: PostgresServer
    quick: bool
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def rounds(self, usual: int) -> range:
        return range(1 if self.quick else usual)

    def size(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def postgres_url(self) -> str:
        """A new, empty database on the private PostgreSQL, which has the load's cores."""
        name = f"bench{next(self._numbers)}"
        self.postgres.create_database(name)
        return self.postgres.url(name)

    def sqlite_url(self) -> str:
        return f"sqlite:///{self.folder / f'bench{next(self._numbers)}.db'}"

    def new_folder(self) -> str:
        return tempfile.mkdtemp(dir=self.folder)

    def url(self, database: str) -> str:
        return self.postgres_url() if database == "postgresql" else self.sqlite_url()

    def watch(self, *programs: Program) -> Watch:
        """Tells afterwards how much of the machine others have used; of the load clients it is told by the caller."""
        return Watch([psutil.Process(self.postgres.pid), *(program.process for program in programs)])

    def say(self, text: str) -> None:
        """Progress, for who waits."""
        print(f"  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def session(*, quick: bool) -> Iterator[Session]:
    with compiled() as load, tempfile.TemporaryDirectory() as folder, PostgresServer() as postgres:
        _pin(psutil.Process(postgres.pid))
        yield Session(load, Path(folder), postgres, quick)


def _pin(process: psutil.Process) -> None:
    """To the load's cores, with all that it starts from now on."""
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, AttributeError):  # macOS cannot pin
            each.cpu_affinity(list(LOAD_CORES))
