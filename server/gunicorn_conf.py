"""gunicorn's configuration: `gunicorn --config server/gunicorn_conf.py`. All is set by variables (docs/settings.md).

gunicorn reads the names below (its documentation calls them settings and server hooks) in its master, before it forks.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from server import logs, settings  # noqa: E402 (found by the line above)
from server.cores import available_cores  # noqa: E402
from server.loopback import is_loopback  # noqa: E402
from server.metrics_address import listening_socket  # noqa: E402
from server.setting import SettingError  # noqa: E402

try:
    _loaded = settings.load(os.environ)
    settings.check_exposure(_loaded.listen, open=_loaded.open)
except SettingError as error:
    sys.exit(str(error))
logs.configure(_loaded.log.level)
if _loaded.open and not is_loopback(_loaded.listen.host):
    logs.warn_unauthenticated(_loaded.listen.host)

# Where files are memory. On a disk that is busy a worker would wait for it, in the midst of its loop, and one on a disk
# that is full would die of it.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (what is made there is ours alone)

# The figures of all workers come together in files (prometheus_client reads the variable when it is imported). One
# folder a master: one that is started by another with SIGUSR2 finds that one's name here, and takes its own.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = str(Path(_MEMORY or tempfile.gettempdir()) / f"swarm-metrics-{os.geteuid()}-")
_chosen = os.environ.get(_SHARED)
if not _chosen or _chosen.startswith(_PREFIX):
    _chosen = os.environ[_SHARED] = f"{_PREFIX}{os.getpid()}"
_figures = Path(_chosen)

wsgi_app = "server.gunicorn_app:application"
chdir = str(_ROOT)
_host = f"[{_loaded.listen.host}]" if ":" in _loaded.listen.host else _loaded.listen.host
bind = [f"{_host}:{_loaded.listen.port}"]
workers = _loaded.gunicorn.workers or available_cores()
# asyncio's own loop: for what a hub does it is the faster one, and a commit waits for the database anyway.
worker_class = "aiohttp.GunicornWebWorker"
worker_tmp_dir = _MEMORY  # for files that are heartbeats
timeout = int(max(30, _loaded.listen.drain + 10))  # a worker whose loop has not turned for so long is ended
graceful_timeout = int(_loaded.listen.drain + 5)  # after that, what is left is killed
control_socket_disable = True
logger_class = "server.gunicorn_log.GunicornLog"
loglevel = _loaded.log.level.lower()
proc_name = "swarm"


def on_starting(server: Arbiter) -> None:
    """What a master before this one has left is of processes that are gone. Nothing else in the folder is touched."""
    try:
        _figures.mkdir(mode=0o700, parents=True, exist_ok=True)
        if str(_figures).startswith(_PREFIX) and _figures.lstat().st_uid != os.geteuid():
            raise PermissionError  # made by somebody who guessed its name
        for file in _figures.glob("*.db"):
            file.unlink(missing_ok=True)
        if not os.access(_figures, os.W_OK):
            raise PermissionError
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else "it belongs to others"
        sys.exit(f"{_SHARED} cannot be used: {reason}.")


def when_ready(server: Arbiter) -> None:
    """Before there is a worker. What it really listens on counts: `--bind` and systemd's sockets ask no HOST."""
    addresses = [listener.getsockname() for listener in server.LISTENERS] or server.cfg.address
    for host in [address[0] for address in addresses if isinstance(address, tuple)]:  # a path is of this machine only
        try:
            settings.check_exposure(dataclasses.replace(_loaded.listen, host=host), open=_loaded.open)
        except SettingError as error:
            sys.exit(str(error))
    if _loaded.edge.metrics_address is not None:
        try:  # a worker that cannot would not come up, and say so in a traceback
            listening_socket(_loaded.edge.metrics_address, shared=True).close()
        except SettingError as error:
            sys.exit(str(error))


def post_worker_init(worker: Worker) -> None:
    """Lets the application know its worker."""
    application: Any = worker.wsgi
    worker.wsgi = functools.partial(application, worker)


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Its gauges go with it; its counters stay, for a counter never falls."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid, str(_figures))  # type: ignore[no-untyped-call]


def on_exit(server: Arbiter) -> None:
    """Leaves nothing behind of what is this master's own."""
    if str(_figures).startswith(_PREFIX):
        shutil.rmtree(_figures, ignore_errors=True)
