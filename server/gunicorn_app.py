"""What gunicorn's workers serve. `gunicorn_conf.py` names it."""

from __future__ import annotations

import os
import signal

from aiohttp import web
from gunicorn.workers.base import Worker

from server import descriptors, garbage, logs, settings
from server.app import create_app
from server.connection import Runner
from server.drain import heed_signals
from server.patience import wait_for_database


async def tune_garbage(app: web.Application) -> None:
    """Last: all that lives as long as the worker is there."""
    garbage.tune()


async def application(worker: Worker) -> Runner:
    """The application on connections of ours, for this worker.

    It begins to end at the signal itself: aiohttp's worker would look up to a second later.
    """
    loaded = settings.load(os.environ)
    logs.configure(loaded.log.level)
    descriptors.raise_limit()
    app = create_app(loaded)
    app.on_startup.append(wait_for_database)  # until then requests wait in the queue of the socket that workers share
    app.on_startup.append(tune_garbage)
    runner = Runner(app)

    def begin() -> None:
        worker.handle_quit(signal.SIGTERM, None)  # wakes it: it stops to serve, and cleans up

    heed_signals(begin, runner.hurry)
    return runner
