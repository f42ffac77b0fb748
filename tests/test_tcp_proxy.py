"""The proxy that fault tests place between a client and its database does what they count on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tests.postgres_server import PostgresServer
from tests.tcp_proxy import Cut, TcpProxy

TIMEOUT = 10.0


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    """A server that answers each line with itself."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except ConnectionResetError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def proxy(echo_port: int) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", echo_port) as proxy:
        yield proxy


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


class Client:
    """One connection through a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: bytes) -> None:
        self.writer.write(line)

    async def hear(self) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readline()


Connect = Callable[[TcpProxy], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects clients, and closes them after the test."""
    clients: list[Client] = []

    async def connect(proxy: TcpProxy) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.writer.close()
        with contextlib.suppress(OSError):
            await client.writer.wait_closed()


async def test_it_passes_bytes_both_ways_and_counts_them(proxy: TcpProxy, connect: Connect) -> None:
    client = await connect(proxy)
    client.say(b"hello\n")
    assert await client.hear() == b"hello\n"
    assert (proxy.connections, proxy.open_connections) == (1, 1)
    assert (proxy.bytes_from_clients, proxy.bytes_from_server) == (6, 6)


async def test_an_end_is_passed_on_and_the_connection_forgotten(proxy: TcpProxy, connect: Connect) -> None:
    client = await connect(proxy)
    client.say(b"last\n")
    client.writer.write_eof()
    assert await client.hear() == b"last\n"
    assert await client.hear() == b""
    client.writer.close()
    await until(lambda: proxy.open_connections == 0)


async def test_hooks_change_and_swallow_data(proxy: TcpProxy, connect: Connect) -> None:
    async def in_capitals(chunk: bytes) -> bytes | None:
        return chunk.upper()

    proxy.on_client_data = lambda chunk: None if chunk == b"swallowed\n" else chunk
    proxy.on_server_data = in_capitals
    client = await connect(proxy)
    client.say(b"swallowed\n")
    await until(lambda: proxy.bytes_from_clients == 10)
    client.say(b"heard\n")
    assert await client.hear() == b"HEARD\n"


async def test_a_hook_that_cuts_resets_the_client(proxy: TcpProxy, connect: Connect) -> None:
    def cut(chunk: bytes) -> bytes:
        raise Cut

    client = await connect(proxy)
    proxy.on_server_data = cut
    client.say(b"lost\n")
    with pytest.raises(ConnectionResetError):
        await client.hear()


async def test_a_hook_that_cuts_may_pass_something_on_and_close_instead(proxy: TcpProxy, connect: Connect) -> None:
    def cut(chunk: bytes) -> bytes:
        raise Cut(chunk[:2], clean=True)

    client = await connect(proxy)
    proxy.on_server_data = cut
    client.say(b"half\n")
    assert await client.hear() == b"ha"
    assert await client.hear() == b""


async def test_each_connection_may_have_a_hook_of_its_own(proxy: TcpProxy, connect: Connect) -> None:
    def numbered() -> Callable[[bytes], bytes]:
        number = proxy.connections
        return lambda chunk: b"%d: %b" % (number, chunk)

    proxy.on_connection = numbered
    proxy.on_server_data = bytes.upper
    for number in (1, 2):
        client = await connect(proxy)
        client.say(b"hello\n")
        assert await client.hear() == b"%d: HELLO\n" % number


async def test_cut_all_resets_every_connection_and_new_ones_work(proxy: TcpProxy, connect: Connect) -> None:
    clients = [await connect(proxy) for _ in range(3)]
    await until(lambda: proxy.open_connections == 3)
    proxy.cut_all()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            await client.hear()
    fresh = await connect(proxy)
    fresh.say(b"again\n")
    assert await fresh.hear() == b"again\n"


async def test_it_refuses_and_accepts_on_the_same_port_while_old_connections_stay(
    proxy: TcpProxy, connect: Connect
) -> None:
    old = await connect(proxy)
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    old.say(b"still here\n")
    assert await old.hear() == b"still here\n"
    await proxy.accept()
    new = await connect(proxy)
    new.say(b"welcome\n")
    assert await new.hear() == b"welcome\n"


async def test_an_error_in_a_hook_fails_the_test(echo_port: int, connect: Connect) -> None:
    def broken(chunk: bytes) -> bytes:
        raise AssertionError("seen")

    with pytest.raises(ExceptionGroup) as raised:
        async with TcpProxy("127.0.0.1", echo_port) as proxy:
            proxy.on_client_data = broken
            client = await connect(proxy)
            client.say(b"x\n")
            with pytest.raises(ConnectionResetError):
                await client.hear()
    assert raised.group_contains(AssertionError, match="seen")


async def test_a_server_that_is_down_looks_down(connect: Connect) -> None:
    async with TcpProxy("127.0.0.1", 1) as to_nobody:
        client = await connect(to_nobody)
        with pytest.raises(ConnectionResetError):
            await client.hear()


async def test_a_held_commit_happens_and_its_answer_never_arrives(postgres: PostgresServer) -> None:
    direct = await asyncpg.connect(postgres.url("postgres"))
    async with TcpProxy("127.0.0.1", postgres.port) as proxy:
        url = postgres.url("postgres").replace(f":{postgres.port}/", f":{proxy.port}/")
        through = await asyncpg.connect(url)
        try:
            await direct.execute("CREATE TABLE held (number int)")
            before = proxy.bytes_from_server
            proxy.hold_server_data()
            insert = asyncio.create_task(through.execute("INSERT INTO held VALUES (1)"))
            await until(lambda: proxy.bytes_from_server > before)
            assert await direct.fetchval("SELECT count(*) FROM held") == 1
            assert not insert.done()
            proxy.cut_all()
            with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
                await insert
            proxy.release()
            again = await asyncpg.connect(url)
            await again.close()
        finally:
            through.terminate()
            await direct.execute("DROP TABLE IF EXISTS held")
            await direct.close()
