"""A real pgbouncer in transaction mode in front of a test's PostgreSQL server, where one is installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.free_port import free_port

_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 10.0

HOW_TO_GET_IT = "pgbouncer is not installed; on Debian and Ubuntu, apt-get install pgbouncer brings it"


def find_pgbouncer() -> str | None:
    """Where its binary is: Debian puts it where only root's PATH leads."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


class Pgbouncer:
    """Listens on a port of its own; hands each transaction to one of a few server connections. A context manager."""

    def __init__(self, server_port: int, server_connections: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._server_connections = server_connections
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        binary = find_pgbouncer()
        assert binary is not None
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-pgbouncer-", dir="/tmp")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        self.port = free_port()
        ini = folder / "pgbouncer.ini"
        ini.write_text(
            f"""
            [databases]
            * = host=127.0.0.1 port={self._server_port} user=swarm
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = any
            pool_mode = transaction
            default_pool_size = {self._server_connections}
            max_client_conn = 200
            """
        )
        ini.chmod(0o644)
        options: dict[str, Any] = {}
        if os.geteuid() == 0:  # which it refuses to be
            nobody = pwd.getpwnam("nobody")
            options = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [binary, str(ini)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **options
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._listens():
            if time.monotonic() > deadline or self._process.poll() is not None:
                said = (folder / "log").read_text(errors="replace")
                self.__exit__(None, None, None)
                raise RuntimeError(f"pgbouncer does not listen\n{said}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._folder is not None
        self._process.kill()
        self._process.wait(_STOP_TIMEOUT)
        self._folder.cleanup()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
