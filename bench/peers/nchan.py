"""nchan: the publish-and-subscribe module of nginx, written in C. One worker; messages live in its memory alone.

This program writes its configuration and becomes nginx.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from bench.peers.arguments import parse

_MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# Long enough a memory for every burst, no log, no delay: as its documentation advises for many subscribers.
_CONFIGURATION = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 65000;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 20000; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 10000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_body_in_single_buffer on;
        location = /health {{ return 200; }}
        location = /publish {{
            nchan_publisher;
            nchan_channel_id c1;
            nchan_message_buffer_length 20000;
            nchan_message_timeout 5m;
        }}
        location = /events {{
            nchan_subscriber eventsource;
            nchan_channel_id c1;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"""


def _module() -> Path | None:
    candidates = (Path(folder) / "ngx_nchan_module.so" for folder in _MODULES)
    return next((path for path in candidates if path.exists()), None)


def available() -> str | None:
    """Why nchan cannot run here, or None."""
    if shutil.which("nginx", path=_PATH) is None or _module() is None:
        return "nginx with nchan is not installed (on Debian and Ubuntu: nginx-light libnginx-mod-nchan)"
    return None


def main() -> None:
    arguments = parse(__doc__)
    # Next to the bench's own files, which are removed with their folder.
    folder = tempfile.mkdtemp(prefix="nchan-", dir=os.environ.get("BENCH_FOLDER"))
    configuration = Path(folder) / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(_CONFIGURATION.format(module=_module(), folder=folder, port=arguments.port, user=user))
    nginx = shutil.which("nginx", path=_PATH)
    assert nginx is not None
    os.execv(nginx, [nginx, "-c", str(configuration), "-p", folder])  # noqa: S606 (it becomes the server)


if __name__ == "__main__":
    main()
