"""nginx in front of several servers, as one address."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.free_port import free_port

# Streams are passed on as they come. What could not reach a server goes to the other one, each time: a server that is
# marked as failed for a while would be missed just when the other one ends.
_CONFIGURATION = """\
daemon off;
master_process off;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream swarm {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://swarm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


def found() -> str | None:
    """Where nginx is; Debian has it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def require() -> None:
    """Skips what needs nginx; where it should be there (CI), that is a failure."""
    if found() is None:
        missing = "nginx is not installed: on Debian and Ubuntu, run: apt-get install nginx-light"
        if os.environ.get("SWARM_REQUIRE_CLIENTS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


class Nginx:
    """Passes what comes on to the servers on these ports of 127.0.0.1, in turn."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-nginx-")
        servers = "\n        ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)
        configuration = _CONFIGURATION.format(servers=servers, port=self.port)
        (Path(self._folder.name) / "nginx.conf").write_text(configuration)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        name = found()
        assert name is not None
        self._process = subprocess.Popen(
            [name, "-p", self._folder.name, "-c", "nginx.conf", "-e", "error.log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while not (Path(self._folder.name) / "nginx.pid").exists():
            assert time.monotonic() < deadline, self.log()
            assert self._process.poll() is None, self.log()
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        self._folder.cleanup()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        log = Path(self._folder.name) / "error.log"
        return log.read_text() if log.exists() else ""
