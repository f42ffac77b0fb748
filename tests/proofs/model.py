"""A model of conversations and their readers, which hypothesis drives against servers that serve them.

The model knows what each write must answer, how many events it takes, and what is stored then; each reader, whatever
was done to its connection, must end with just that.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient

from events.runs import Runs, ToolCall
from handlers.resources import DATABASE, LOG
from server import settings
from server.app import create_app
from storage.records import Run
from storage.retention import Retention
from tests.api import Client
from tests.proofs.talk import TENANT, difference, state
from tests.reader import Follower, Held, utf16_length
from tests.served import Served
from tests.tcp_proxy import Cut, Hook, TcpProxy

Json = dict[str, Any]
T = TypeVar("T")

UNKNOWN = "00000000-0000-7000-8000-000000000000"

# As small as can be: what needs a long conversation or a large burst elsewhere happens here all the time.
_SMALL = {"ring_bytes": 2_500, "slice_bytes": 1_500, "page_events": 3, "page_chars": 2_000}
_WAIT = 20.0  # seconds in which readers have all that was written before


class World:
    """Two servers on one database, in a loop that runs while something is asked of it, and only then."""

    def __init__(self, runner: asyncio.Runner, clients: list[Client]) -> None:
        self.clients = clients
        self.steps = 0
        """How many rules were carried out, by all machines."""
        self.ends = 0
        """How often readers were compared with what is stored."""
        self.states = 0
        """How many of these were given state."""
        self.connections = 0
        """How often they connected."""
        self._runner = runner

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


@contextmanager
def world(database_url: str) -> Iterator[World]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> list[Client]:
            return [await stack.enter_async_context(_server(database_url)) for _ in range(2)]

        try:
            yield World(runner, runner.run(start()))
        finally:
            runner.run(stack.aclose())


@asynccontextmanager
async def _server(database_url: str) -> AsyncIterator[Client]:
    loaded = settings.load({"DATABASE_URL": database_url, "SWARM_STREAM_COMPARE": "0.05", "SWARM_STREAM_IDLE": "80000"})
    app = create_app(dataclasses.replace(loaded, stream=dataclasses.replace(loaded.stream, **_SMALL)))
    client: TestClient[Any, web.Application]
    async with TestClient(Served(app)) as client:
        await app[DATABASE].wait_until_ready()
        yield client


@dataclass
class Message:
    """What the model knows of one."""

    id: str
    content: str
    status: str
    created_seq: int
    calls: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        return utf16_length(self.content)


@dataclass
class Written:
    """A request with a key that was answered: the same one again has the same answer, and does nothing."""

    chat: Chat
    method: str
    path: str
    body: Any
    key: str
    status: int
    answer: bytes


@dataclass
class Chat:
    """A conversation as the model has it."""

    id: str
    told: Json
    messages: list[Message] = field(default_factory=list)
    runs: dict[str, Json] = field(default_factory=dict)
    title: str | None = None
    head: int = 0
    floor: int = 0
    deleted: bool = False

    @property
    def path(self) -> str:
        return f"/api/conversations/{self.id}"

    @property
    def streaming(self) -> list[Message]:
        return [message for message in self.messages if message.status == "streaming"]


@dataclass
class Reader:
    """One that follows chats, or sleeps. Between it and the server is a proxy that cuts where it is told."""

    follower: Follower
    proxy: TcpProxy
    left: int | None = None
    """How many bytes are passed on until the next cut."""
    clean: bool = False
    task: asyncio.Task[None] | None = None

    def watch(self) -> Hook:
        def pass_on(data: bytes) -> bytes:
            if self.left is None:
                return data
            if len(data) < self.left:
                self.left -= len(data)
                return data
            passed, self.left = data[: self.left], None
            raise Cut(passed, clean=self.clean)

        return pass_on

    def wake(self, server: Client) -> None:
        """Follows, by this server."""
        assert server.port is not None
        self.proxy._upstream = (server.host, server.port)
        if self.task is None:
            self.task = asyncio.create_task(self.follower.follow(lambda: False, timeout=3_600))

    async def sleep(self) -> None:
        """Goes away, and remembers what it holds and the last id."""
        if self.task is not None:
            if self.task.done():
                await self.task  # it has failed: that is what must be seen
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    def has(self, chat: Chat) -> bool:
        if self.task is not None and self.task.done():
            self.task.result()
        held = self.follower.held[chat.id]
        return held.deleted or chat.id in self.follower.gone or (not chat.deleted and held.last_seq >= chat.head)


class Writers:
    """The writes, each with what the model says of its answer. `here` is the server that is asked."""

    def __init__(self, world: World) -> None:
        self.chats: list[Chat] = []
        self.written: list[Written] = []
        self.here = world.clients[0]
        self._keys = 0

    async def send(
        self, chat: Chat, method: str, path: str, body: Any, status: int, *, events: int = 0, key: bool = False
    ) -> Any:
        """What is answered, with this status and after so many events."""
        expected = 404 if chat.deleted else status
        headers = {}
        if key:
            self._keys += 1
            headers["Idempotency-Key"] = f"{chat.id}/{self._keys}"
        answer = await self.here.request(method, path, json=body, headers=headers)
        text = await answer.read()
        assert answer.status == expected, f"{method} {path} {body}: {answer.status} {text!r}, not {expected}"
        if expected >= 400:
            document = msgspec.json.decode(text)
            assert document["status"] == expected, document
            return document
        chat.head += events
        if key and events:
            name = headers["Idempotency-Key"]
            self.written.append(Written(chat, method, path, body, name, answer.status, text))
        return msgspec.json.decode(text) if text else None

    async def create(self, title: str | None) -> Chat:
        answer = await self.here.post("/api/conversations", json={"title": title})
        assert answer.status == 201
        told: Json = await answer.json()
        chat = Chat(told["id"], told, title=title)
        self.chats.append(chat)
        return chat

    async def post(self, chat: Chat, texts: list[str], *, many: bool, key: bool) -> None:
        bodies = [{"role": "user", "content": text} for text in texts]
        made = await self.send(
            chat, "POST", f"{chat.path}/messages", bodies if many else bodies[0], 201, events=len(texts), key=key
        )
        if not chat.deleted:
            for number, message in enumerate(made["items"] if many else [made]):
                self._made(chat, message, chat.head - len(texts) + number + 1)

    async def open(self, chat: Chat, *, key: bool) -> None:
        body = {"role": "user", "status": "streaming"}
        made = await self.send(chat, "POST", f"{chat.path}/messages", body, 201, events=1, key=key)
        if not chat.deleted:
            self._made(chat, made, chat.head)

    def _made(self, chat: Chat, message: Json, seq: int) -> None:
        chat.messages.append(Message(message["id"], message["content"], message["status"], seq))
        assert message["position"] == len(chat.messages)

    async def delta(
        self, chat: Chat, message: Message, offset: int, text: str, rest: str | None, *, key: bool = False
    ) -> None:
        """`rest` is what of the text is new, None where it does not fit."""
        path, body = f"/api/messages/{message.id}/deltas", {"offset": offset, "text": text}
        if message.status != "streaming" or rest is None:
            document = await self.send(chat, "POST", path, body, 409)
            if not chat.deleted:
                assert (document["length"], document["message_status"]) == (message.length, message.status)
            return
        answer = await self.send(chat, "POST", path, body, 200, events=1 if rest else 0, key=key)
        if not chat.deleted:
            message.content += rest
            assert answer == {"length": message.length}

    async def finish(self, chat: Chat, message: Message, status: str, *, key: bool) -> None:
        path, body = f"/api/messages/{message.id}/finish", {"status": status, "usage": {"tokens": 1}}
        if message.status not in {"streaming", status}:
            await self.send(chat, "POST", path, body, 409)
            return
        streams = message.status == "streaming"
        answer = await self.send(chat, "POST", path, body, 200, events=1 if streams else 0, key=key)
        if not chat.deleted:
            message.status = status
            assert (answer["content"], answer["status"]) == (message.content, status)

    async def edit(self, chat: Chat, message: Message, text: str, *, key: bool) -> None:
        refused = message.status in {"streaming", "deleted"}
        path = f"/api/messages/{message.id}"
        await self.send(
            chat, "PATCH", path, {"content": text}, 409 if refused else 200, events=0 if refused else 1, key=key
        )
        if not refused and not chat.deleted:
            message.content = text

    async def delete(self, chat: Chat, message: Message) -> None:
        events = 0 if message.status == "deleted" else 1
        await self.send(chat, "DELETE", f"/api/messages/{message.id}", None, 204, events=events)
        if not chat.deleted:
            message.status, message.content, message.calls = "deleted", "", []

    async def rename(self, chat: Chat, title: str | None, *, key: bool) -> None:
        await self.send(chat, "PATCH", chat.path, {"title": title}, 200, events=1, key=key)
        if not chat.deleted:
            chat.title = title

    async def delete_chat(self, chat: Chat) -> None:
        await self.send(chat, "DELETE", chat.path, None, 204, events=1)
        chat.deleted = True

    async def repeat(self, written: Written, *, other: bool) -> None:
        """The same request again, or another one with its key."""
        body = {**written.body, "more": 1} if other and isinstance(written.body, dict) else written.body
        answer = await self.here.request(
            written.method, written.path, json=body, headers={"Idempotency-Key": written.key}
        )
        text = await answer.read()
        if written.chat.deleted and answer.status == 404:
            return
        if body is written.body:
            assert (answer.status, text) == (written.status, written.answer)
        else:
            assert answer.status == 422, text

    async def burst(self, chat: Chat, text: str) -> None:
        """All that stream get more text, a message is posted and the chat renamed, at once and by both servers."""
        if chat.deleted:
            return
        deltas = [self.delta(chat, message, message.length, text, text) for message in chat.streaming]
        await asyncio.gather(
            *deltas, self.rename(chat, text, key=False), self.post(chat, [text], many=False, key=False)
        )

    @property
    def recorder(self) -> Runs:
        return Runs(self.here.app[DATABASE], self.here.app[LOG]._appending)

    async def run(self, chat: Chat, run: Run) -> None:
        await self.recorder.record(TENANT, run)
        chat.head += 1
        chat.runs[run.id] = msgspec.json.decode(msgspec.json.encode(run))

    async def tool(self, chat: Chat, message: Message, call: ToolCall) -> None:
        if call.id in message.calls:
            await self.recorder.tool_returned(TENANT, message.id, call)
        else:
            await self.recorder.tool_called(TENANT, message.id, call)
            message.calls.append(call.id)
        chat.head += 1

    async def retain(self, chat: Chat, keep: int) -> None:
        await Retention(self.here.app[DATABASE]).retain(before=None, keep=keep, conversation_id=chat.id)
        limit = min([chat.head - keep, *(message.created_seq - 1 for message in chat.streaming)])
        chat.floor = max(chat.floor, limit)

    async def window(self, chat: Chat, after: int = 0, limit: int = 500) -> Json:
        answer = await self.here.get(f"{chat.path}/messages?after={after}&limit={limit}")
        assert answer.status == 200
        found: Json = await answer.json()
        return found

    async def truth(self, chat: Chat) -> Json:
        """What is stored, once it is seen to be what the model says."""
        window = await self.window(chat)
        assert (window["as_of"], window["total"]) == (chat.head, len(chat.messages))
        items = window["items"]
        assert [(m["id"], m["status"], m["content"]) for m in items] == [
            (m.id, m.status, m.content) for m in chat.messages
        ]
        assert [[call["id"] for call in m["tool_calls"]] for m in items] == [m.calls for m in chat.messages]
        conversation = await (await self.here.get(chat.path)).json()
        assert (conversation["title"], conversation["as_of"]) == (chat.title, chat.head)
        return state({m["position"]: m for m in items}, chat.runs, conversation)


def compare(chat: Chat, held: Held, truth: Json) -> str:
    """Where a reader holds anything else than what is stored; "" where it does not."""
    if not held.everything or held.resets:
        # It knows of what it has asked for, and of what happened since.
        known = {
            name: {key: part for key, part in truth[name].items() if key in has}
            for name, has in (("messages", held.messages), ("runs", held.runs))
        }
        truth = {**truth, **known}
    conversation = held.conversation or (truth["conversation"] if held.resets or not held.everything else chat.told)
    return difference(state(held.messages, held.runs, conversation), truth)
