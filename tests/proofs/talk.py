"""A conversation in which everything happens, for readers that have to keep up with it."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from events.runs import Runs, ToolCall
from handlers.resources import DATABASE, LOG
from storage.records import Run, new_id
from tests.api import Client
from tests.reader import Held, utf16_length

TENANT = "default"

Json = dict[str, Any]

_PIECES = ["plain ", "😀👩‍👩‍👧 ", "e\u0301a\u0308 ", "שלום ", "line\nbreak\u2028 ", "data: x\n\nid: 9\n\n", "\\u0000 "]


@dataclass
class Talk:
    """A conversation, and what only the tests know of it: its runs have no route yet.

    `told` is its resource when nobody had renamed it yet; no event says that.
    """

    client: Client
    id: str
    told: Json
    runs: dict[str, Json] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/api/conversations/{self.id}"

    async def get(self, path: str) -> Json:
        answer = await self.client.get(path)
        assert answer.status == 200, await answer.text()
        found: Json = await answer.json()
        return found

    async def head(self) -> int:
        return int((await self.get(f"{self.path}/messages?limit=1"))["as_of"])

    async def truth(self) -> tuple[int, Json]:
        """Its head and its whole state, while nobody writes."""
        messages: dict[int, Json] = {}
        after: int | None = 0
        head = await self.head()
        while after is not None:
            window = await self.get(f"{self.path}/messages?after={after}&limit=500")
            assert window["as_of"] == head, "somebody writes"
            messages |= {message["position"]: message for message in window["items"]}
            after = window["next"]
        return head, state(messages, self.runs, await self.get(self.path))

    def state_of(self, held: Held) -> Json:
        """What a reader holds that has followed from the beginning, to be compared with the truth."""
        return state(held.messages, held.runs, held.conversation or self.told)


async def new_talk(client: Client) -> Talk:
    answer = await client.post("/api/conversations", json={"title": "at first"})
    assert answer.status == 201
    told: Json = await answer.json()
    return Talk(client, told["id"], told)


def state(messages: dict[int, Json], runs: dict[str, Json], conversation: Json) -> Json:
    """All that a conversation is. What each event changes and does not say (its numbers) is not in it."""
    own = {name: conversation[name] for name in ("id", "title", "metadata", "created_at", "updated_at")}
    return {"messages": dict(sorted(messages.items())), "runs": dict(sorted(runs.items())), "conversation": own}


def difference(found: Json, expected: Json) -> str:
    """Where two states differ, for a failure that can be read."""
    lines: list[str] = []
    for part in ("messages", "runs", "conversation"):
        for name in sorted(found[part].keys() | expected[part].keys(), key=str):
            one, other = found[part].get(name), expected[part].get(name)
            if one != other:
                lines.append(f"{part} {name}:\n  is        {one}\n  should be {other}")
    return "\n".join(lines[:5]) + (f"\nand {len(lines) - 5} more" if len(lines) > 5 else "")


@dataclass
class _Open:
    """A message that its author is streaming, with its run."""

    message: Json
    run: Run
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class Author:
    """Does one thing after the other in a talk, several streams at once: all by chance, nothing that is refused."""

    def __init__(self, talk: Talk, chance: random.Random) -> None:
        self._talk = talk
        self._chance = chance
        self._recorder = Runs(talk.client.app[DATABASE], talk.client.app[LOG]._appending)
        self._open: list[_Open] = []
        self._done: list[str] = []

    async def act(self) -> None:
        """One thing: an event or two, or a few at once."""
        deeds: list[tuple[int, Callable[[], Awaitable[None]]]] = [(3, self._post), (1, self._rename)]
        if len(self._open) < 4:
            deeds.append((2, self._stream))
        if self._open:
            deeds += [(14, self._delta), (3, self._tool), (2, self._finish)]
        if self._done:
            deeds += [(3, self._edit), (1, self._delete)]
        weights, names = zip(*deeds, strict=True)
        await self._chance.choices(names, weights)[0]()

    async def finish_all(self) -> None:
        """Nothing of this author's streams any more."""
        while self._open:
            await self._finish()

    async def _send(self, method: str, path: str, body: Any, status: int) -> Any:
        answer = await self._talk.client.request(method, path, json=body)
        assert answer.status == status, await answer.text()
        return await answer.json() if status != 204 else None

    def _text(self) -> str:
        return "".join(self._chance.choices(_PIECES, k=self._chance.randint(1, 6)))

    async def _post(self) -> None:
        messages = [{"role": "user", "content": self._text()} for _ in range(self._chance.choice([1, 1, 1, 3]))]
        made = await self._send("POST", f"{self._talk.path}/messages", messages, 201)
        self._done += [message["id"] for message in made["items"]]

    async def _rename(self) -> None:
        title = self._chance.choice([None, self._text()])
        await self._send("PATCH", self._talk.path, {"title": title, "metadata": {"n": self._chance.random()}}, 200)

    async def _stream(self) -> None:
        body = {"role": "agent", "agent_id": "general_01", "status": "streaming", "metadata": {"by": "chance"}}
        message = await self._send("POST", f"{self._talk.path}/messages", body, 201)
        at = datetime.now(UTC)
        run = Run(new_id(), self._talk.id, "general_01", "running", message["id"], 1, None, at, at, None)
        stream = _Open(message, run)
        self._open.append(stream)
        await self._record(run)

    async def _record(self, run: Run) -> None:
        await self._recorder.record(TENANT, run)
        self._talk.runs[run.id] = msgspec.json.decode(msgspec.json.encode(run))

    async def _delta(self) -> None:
        stream, text = self._chance.choice(self._open), self._text()
        body = {"offset": utf16_length(stream.text), "text": text}
        await self._send("POST", f"/api/messages/{stream.message['id']}/deltas", body, 200)
        stream.text += text

    async def _tool(self) -> None:
        stream = self._chance.choice(self._open)
        message_id = stream.message["id"]
        calls = [call for call in stream.calls if call.ended_at is None]
        if calls and self._chance.random() < 0.6:
            call = self._chance.choice(calls)
            stream.calls.remove(call)
            call = msgspec.structs.replace(call, result=self._text(), ended_at=datetime.now(UTC))
            await self._recorder.tool_returned(TENANT, message_id, call)
        else:
            call = ToolCall(new_id(), "search", "web", {"q": self._text()}, started_at=datetime.now(UTC))
            await self._recorder.tool_called(TENANT, message_id, call)
        stream.calls.append(call)

    async def _finish(self) -> None:
        # Mostly the oldest: what streams for ever holds back retention for ever.
        stream = self._open.pop(0 if self._chance.random() < 0.8 else self._chance.randrange(len(self._open)))
        status, ended = self._chance.choice(
            [("complete", "succeeded"), ("complete", "succeeded"), ("failed", "failed"), ("cancelled", "cancelled")]
        )
        path = f"/api/messages/{stream.message['id']}"
        if self._chance.random() < 0.15:
            await self._send("DELETE", path, None, 204)
        else:
            await self._send("POST", f"{path}/finish", {"status": status, "usage": {"tokens": 7}}, 200)
            self._done.append(stream.message["id"])
        error = "by chance" if ended == "failed" else None
        await self._record(msgspec.structs.replace(stream.run, state=ended, error=error, ended_at=datetime.now(UTC)))

    async def _edit(self) -> None:
        path = f"/api/messages/{self._chance.choice(self._done)}"
        await self._send("PATCH", path, {"content": self._text(), "metadata": {"edited": True}}, 200)

    async def _delete(self) -> None:
        message_id = self._done.pop(self._chance.randrange(len(self._done)))
        await self._send("DELETE", f"/api/messages/{message_id}", None, 204)
