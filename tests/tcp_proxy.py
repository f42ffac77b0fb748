"""A TCP proxy that fails on command: between a client and its server, at the byte where it hurts."""

import asyncio
import contextlib
import inspect
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from tests.free_port import free_port

Hook = Callable[[bytes], bytes | Awaitable[bytes | None] | None]
"""Sees each chunk as it arrives; returns the bytes to forward (None: nothing), or raises `Cut`.

A chunk is what one read brought: part of a message of the protocol inside, or several.
"""

_CHUNK = 64 * 1024
_CONNECT_TIMEOUT = 10.0


class Cut(Exception):
    """Raised by a hook: its connection ends here. `passed` is still given to the other side; the chunk goes no further.

    Both sides are reset. With `clean` the client sees the connection end instead, as if the server had closed it.
    """

    def __init__(self, passed: bytes = b"", *, clean: bool = False) -> None:
        super().__init__()
        self.passed = passed
        self.clean = clean


class TcpProxy:
    """Listens on a port of 127.0.0.1 and passes bytes to and from the upstream, until told otherwise.

    Use it as an asynchronous context manager; leaving it resets what is still connected. An error in a hook
    resets that connection, and leaving the context raises it, so that no test passes over it.
    """

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        """Prepares a proxy to that server, which need not be up yet."""
        self._upstream = (upstream_host, upstream_port)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._flow = asyncio.Event()
        self._flow.set()
        self._errors: list[Exception] = []

        self.port = 0
        """Where it listens, on 127.0.0.1; the same as long as the proxy lives."""
        self.on_client_data: Hook | None = None
        """Sees what clients send, before it is forwarded."""
        self.on_server_data: Hook | None = None
        """Sees what the server sends, before it is forwarded (and before it is held)."""
        self.on_connection: Callable[[], Hook] | None = None
        """Called for each new connection. What it returns sees what the server sends on that one, before all others."""
        self.connections = 0
        """How many connections were accepted in all."""
        self.bytes_from_clients = 0
        """How many bytes arrived from clients."""
        self.bytes_from_server = 0
        """How many bytes arrived from the server, delivered or not."""

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self.port = free_port()
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.refuse()
        tasks = list(self._connections)
        self.cut_all()
        await asyncio.gather(*tasks, return_exceptions=True)
        # When the test is failing already, its own error tells more.
        if self._errors and error is None:
            raise ExceptionGroup("hooks of the proxy failed", self._errors)

    async def refuse(self) -> None:
        """From now on connecting is refused, as when nobody listens; connections that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            # One turn of the loop, in which the listening socket is closed.
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Connecting works (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)

    def hold_server_data(self) -> None:
        """From now on nothing reaches clients, while what they send goes on to the server.

        So the server does what it is asked, and its answer does not arrive. What it sends meanwhile is taken
        as far as buffers go: one chunk here and what the sockets hold.
        """
        self._flow.clear()

    def release(self) -> None:
        """Delivers what was held, and goes on."""
        self._flow.set()

    def cut_all(self) -> None:
        """Resets every connection now, on both sides; what was held is lost."""
        for task, writers in list(self._connections.items()):
            for writer in writers:
                _reset(writer)
            task.cancel()

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        writers = self._connections[task] = [client_writer]
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                server_reader, server_writer = await asyncio.open_connection(*self._upstream)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._pass_to_server(client_reader, server_writer))
                both_ways.create_task(self._pass_to_client(server_reader, client_writer))
        except* Cut as cuts:
            clean = all(isinstance(cut, Cut) and cut.clean for cut in cuts.exceptions)
            for writer in writers:
                if writer is not client_writer or not clean:  # else it is closed below, once all of it is sent
                    _reset(writer)
        except* OSError:  # one side was reset, which the other is to see as it was
            for writer in writers:
                _reset(writer)
        except* Exception as errors:  # kept, and raised when the proxy is left
            self._errors.extend(errors.exceptions)
            for writer in writers:
                _reset(writer)
        finally:
            for writer in writers:
                writer.close()
            del self._connections[task]

    async def _pass_to_server(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(_CHUNK):
            self.bytes_from_clients += len(chunk)
            passed, cut = await _ask(chunk, self.on_client_data)
            await _forward(passed, sink)
            if cut is not None:
                raise cut
        _end(sink)

    async def _pass_to_client(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        own = None if self.on_connection is None else self.on_connection()
        while chunk := await source.read(_CHUNK):
            self.bytes_from_server += len(chunk)
            passed, cut = await _ask(chunk, own, self.on_server_data)
            if passed:
                await self._flow.wait()
                await _forward(passed, sink)
            if cut is not None:
                raise cut
        await self._flow.wait()
        _end(sink)


async def _ask(chunk: bytes, *hooks: Hook | None) -> tuple[bytes | None, Cut | None]:
    """What the hooks, one after the other, make of the chunk, and whether the connection is cut after it."""
    passed: bytes | None = chunk
    try:
        for hook in hooks:
            if hook is not None and passed is not None:
                answer = hook(passed)
                passed = await answer if inspect.isawaitable(answer) else answer
    except Cut as cut:
        return cut.passed, cut
    return passed, None


async def _forward(chunk: bytes | None, sink: asyncio.StreamWriter) -> None:
    if chunk:
        sink.write(chunk)
        await sink.drain()


def _end(sink: asyncio.StreamWriter) -> None:
    """Says that no more comes; the other direction goes on until it ends by itself."""
    with contextlib.suppress(OSError):
        sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a RST instead of a FIN, dropping what is buffered: the peer sees its connection fail."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() != -1:
        on, seconds = 1, 0
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))
    writer.transport.abort()
