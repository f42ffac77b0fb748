"""What gunicorn's workers serve. `gunicorn_conf.py` names it."""

from __future__ import annotations

import os
import signal

from gunicorn.workers.base import Worker

from server import descriptors, logs, settings
from server.app import create_app
from server.connection import Runner
from server.drain import heed_signals


async def application(worker: Worker) -> Runner:
    """The application on connections of ours, for this worker.

    It begins to end at the signal itself: aiohttp's worker would look up to a second later.
    """
    loaded = settings.load(os.environ)
    logs.configure(loaded.log.level)
    descriptors.raise_limit()
    runner = Runner(create_app(loaded))

    def begin() -> None:
        worker.handle_quit(signal.SIGTERM, None)  # wakes it: it stops to serve, and cleans up

    heed_signals(begin, runner.hurry)
    return runner
