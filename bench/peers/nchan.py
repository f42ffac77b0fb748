"""Fan-out with nchan, nginx's module for it: what one would take who needs no log and no program of one's own.

This writes nginx.conf and becomes nginx: its pid is the master's, the worker that serves is its child. Tuned by nchan's
documentation: memory and a buffer that hold a whole burst, so that a subscriber that lags finds all of it, and one
worker, as the other peers and Swarm have one process.

Its readers must send `Accept: text/event-stream`, as browsers do, or get 403. A body is one message to it, always.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from bench.peers import command

_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
_SYSTEM_PATH = "/usr/sbin:/usr/local/sbin"  # where nginx is, and where an ordinary user's PATH does not look

_CONF = """\
load_module {module};
{user}
daemon off;
master_process on;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;

events {{
    worker_connections 20000;
    multi_accept on;
}}

http {{
    access_log off;
    default_type application/json;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;

    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size {most_bytes};
    client_body_buffer_size 1m;
    client_body_in_single_buffer on;

    nchan_shared_memory_size 512M;

    server {{
        listen {host}:{port} backlog=4096;

        location = /publish {{
            nchan_publisher;
            nchan_channel_id c1;
            nchan_message_buffer_length 10000;
            nchan_message_timeout 5m;
        }}
        location = /events {{
            nchan_subscriber eventsource;
            nchan_channel_id c1;
            nchan_subscriber_first_message newest;
        }}
        location = /health {{
            return 200;
        }}
    }}
}}
"""


def available() -> str | None:
    """Why it cannot run here, or None."""
    missing = [name for name, found in (("nginx", _nginx()), ("its module nchan", _module())) if found is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not found: install Debian's nginx-light and libnginx-mod-nchan"


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path=_SYSTEM_PATH)


def _module() -> Path | None:
    return next((path for folder in _FOLDERS if (path := Path(folder, "ngx_nchan_module.so")).exists()), None)


def _conf(module: Path, folder: Path, port: int) -> str:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _CONF.format(
        module=module,
        folder=folder,
        # Started by root, its worker would be another user, who cannot enter a temporary folder of root's.
        user="user root;" if os.geteuid() == 0 else "",
        descriptors=65536 if hard == resource.RLIM_INFINITY else hard,
        most_bytes=command.MOST_BYTES,
        host=command.HOST,
        port=port,
    )


def main() -> None:
    parser = command.parser("nchan", __doc__)
    parser.add_argument("--folder", type=Path, help="an empty folder for its files, instead of a new temporary one")
    arguments = parser.parse_args()
    nginx, module = _nginx(), _module()
    if nginx is None or module is None:
        sys.exit(available())
    # Nobody is left to remove it: who wants it gone gives a folder of their own.
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="swarm-peer-nchan-"))).resolve()
    conf = folder / "nginx.conf"
    conf.write_text(_conf(module, folder, arguments.port))
    os.execvp(nginx, [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)])  # noqa: S606


if __name__ == "__main__":
    main()
