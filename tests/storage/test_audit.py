"""The audit log: who did what and when, noted with the deed and only with it."""

import pytest

from storage.agents import AgentRows
from storage.append import Committed
from storage.audit import AuditEntry, entries
from storage.errors import NotFound
from storage.records import new_id, now
from tests.storage.store import TENANT, Store, key


async def _entries(store: Store, tenant: str | None = None) -> list[AuditEntry]:
    return [entry async for entry in entries(store.database, tenant, None)]


async def test_deletions_are_noted_with_who_what_and_when(store: Store) -> None:
    before = now()
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    await store.writes.delete(TENANT, message["id"], key=None, by="key:1")
    await store.writes.delete_conversation(TENANT, conversation, key=None, by="key:2")
    found = await _entries(store)
    assert [(entry.tenant, entry.principal, entry.action, entry.subject) for entry in found] == [
        (TENANT, "key:1", "message.delete", message["id"]),
        (TENANT, "key:2", "conversation.delete", conversation),
    ]
    assert before <= found[0].at <= found[1].at <= now()


async def test_what_was_not_done_is_not_noted(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    for refused in (
        store.writes.delete(TENANT, new_id(), key=None, by="me"),
        store.writes.delete("another", message["id"], key=None, by="me"),
        store.writes.delete_conversation("another", conversation, key=None, by="me"),
        AgentRows(store.database, frozenset()).delete(TENANT, "nobody", None, "me"),
    ):
        with pytest.raises(NotFound):
            await refused
    assert await _entries(store) == []


async def test_what_is_done_once_is_noted_once(store: Store) -> None:
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    for _ in range(2):
        await store.writes.delete(TENANT, message["id"], key=key("a"), by="me")
        await store.writes.delete(TENANT, message["id"], key=None, by="me")
        await AgentRows(store.database, frozenset()).put(TENANT, "writer", b"{}", key("b"), "me")
    assert [entry.action for entry in await _entries(store)] == ["message.delete", "agent.put"]


async def test_an_append_with_a_deed_is_told_of_as_any_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its epoch is what the hub goes by."""
    told: list[Committed] = []
    monkeypatch.setattr(store.commits, "_listener", lambda append, committed: told.append(committed))
    conversation = await store.conversation()
    message = await store.post(conversation, "text")
    await store.writes.delete(TENANT, message["id"], key=None, by="me")
    assert [(committed.seq, committed.epoch) for committed in told] == [
        (1, store.database.epoch),
        (2, store.database.epoch),
    ]


async def test_a_tenant_has_its_own(store: Store) -> None:
    agents = AgentRows(store.database, frozenset())
    for tenant in ("one", "two"):
        await agents.put(tenant, "writer", b"{}", None, "me")
        await agents.delete(tenant, "writer", None, "me")
    assert [(entry.tenant, entry.action) for entry in await _entries(store, "two")] == [
        ("two", "agent.put"),
        ("two", "agent.delete"),
    ]
