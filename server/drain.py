"""The end of a process: a first signal begins it, a second one hurries it, and it is over in bounded time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# What the first signal and its echo may be: gunicorn's master passes SIGTERM on as it is, and SIGINT as SIGQUIT.
_ECHOES = ({signal.SIGTERM}, {signal.SIGINT, signal.SIGQUIT}, {signal.SIGQUIT})
_ECHO = 1.0  # seconds within which it comes
_HURRIED = 1.0  # seconds that are left when it is hurried
_LEAST = 0.1  # that each resource has in any case


class Drain:
    """How much time is left. `seconds` bounds all of it: requests in flight, commits that wait, connections."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: float | None = None
        self._closing: asyncio.Event | None = None  # set when there is less time than was thought

    @property
    def begun(self) -> bool:
        return self._until is not None

    def begin(self) -> None:
        """The time runs from now on."""
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self.seconds

    def hurry(self) -> None:
        """Hardly any is left."""
        self.begin()
        assert self._until is not None
        self._until = min(self._until, asyncio.get_running_loop().time() + _HURRIED)
        if self._closing is not None:
            self._closing.set()

    async def bounded(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Closes a resource in the time that is left; beyond it, the next one's turn has come.

        What does not heed its cancellation, because it waits in a `finally` of its own, is left to itself.
        """
        loop = asyncio.get_running_loop()
        closing = asyncio.ensure_future(close())
        hurried = self._closing = asyncio.Event()
        begun = loop.time()
        try:
            while not closing.done():
                left = None if self._until is None else max(self._until, begun + _LEAST) - loop.time()
                if left is not None and left <= 0:
                    log.warning("not closed in time", resource=name)
                    closing.cancel()
                    await asyncio.wait({closing}, timeout=_LEAST)
                    break
                hurried.clear()
                hurry = asyncio.create_task(hurried.wait())
                await asyncio.wait({closing, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                hurry.cancel()
        except BaseException:
            closing.cancel()
            raise
        finally:
            self._closing = None
        if closing.done() and not closing.cancelled():
            closing.result()


DRAIN = web.AppKey("drain", Drain)


async def end_connection(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: what is answered in a drain says that its connection ends, which it does. A client that is not
    told may send its next request into the end of it."""
    if request.app[DRAIN].begun:
        response.headers["Connection"] = "close"
        response.force_close()


def heed_signals(begin: Callable[[], None], hurry: Callable[[], None]) -> None:
    """`begin` at the first of SIGTERM, SIGINT and SIGQUIT that this process gets, `hurry` at each other one.

    Where a whole group of processes is told at once (by systemd, or by Ctrl-C), a worker gets the one signal twice:
    from there, and from its master. Such an echo hurries nothing.
    """
    loop = asyncio.get_running_loop()
    first: signal.Signals | None = None
    echo_until = 0.0

    def heed(number: signal.Signals) -> None:
        nonlocal first, echo_until
        if first is None:
            first, echo_until = number, loop.time() + _ECHO
            begin()
        elif {first, number} in _ECHOES and loop.time() < echo_until:
            echo_until = 0.0  # there is but one
        else:
            hurry()

    for number in _SIGNALS:
        loop.add_signal_handler(number, heed, number)
