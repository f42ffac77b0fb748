"""`python -m server`: one process, SQLite unless told otherwise. `python -m server settings` prints its table;
`keys` and `audit` are for operators."""

from __future__ import annotations

import asyncio
import os
import sys

from aiohttp import web

from server import descriptors, garbage, keys, logs, settings
from server.app import create_app
from server.config import Settings
from server.connection import Runner
from server.drain import heed_signals
from server.loopback import is_loopback
from server.patience import wait_for_database
from server.setting import SettingError


def main() -> int:
    """The exit code: 0 after a signal, 1 when the server cannot start, 2 for arguments that it does not know."""
    if sys.argv[1:] == ["settings"]:
        print(settings.as_markdown(), end="")
        return 0
    if sys.argv[1:2] not in ([], ["keys"], ["audit"]):
        print(
            "usage: python -m server [settings | keys … | audit …]; everything is set by variables of the environment.",
            file=sys.stderr,
        )
        return 2
    try:
        loaded = settings.load(os.environ)
        if sys.argv[1:]:
            return keys.main(sys.argv[1:], loaded.storage)
        settings.check_exposure(loaded.listen, open=loaded.open)
    except SettingError as error:
        print(error, file=sys.stderr)
        return 1
    logs.configure(loaded.log.level)
    descriptors.raise_limit()
    return asyncio.run(_serve(loaded))


async def _serve(loaded: Settings) -> int:
    stop = asyncio.Event()
    app = create_app(loaded)
    runner = Runner(app)
    heed_signals(stop.set, runner.hurry)
    try:
        await runner.setup()
        listen = loaded.listen
        site = web.TCPSite(runner, listen.host, listen.port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            print(f"Cannot listen on {listen.host}:{listen.port} (HOST, PORT): {reason}.", file=sys.stderr)
            return 1
        if loaded.open and not is_loopback(listen.host):
            logs.warn_unauthenticated(listen.host)
        await wait_for_database(app)
        garbage.tune()
        print(f"Swarm listens on {site.name}", flush=True)
        await stop.wait()
    except SettingError as error:  # of an address of which is only known now that nobody can listen there
        print(error, file=sys.stderr)
        return 1
    finally:
        await runner.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
