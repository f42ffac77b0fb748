"""What is given for a credential at the very moment at which that is revoked (PostgreSQL: SQLite has one writer)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from storage import credentials as module
from storage.credentials import Credential, Credentials, Giver, parse_token
from storage.errors import CredentialEnded
from tests.storage.store import TENANT, Store, bounded, opened, until_true

_HOUR = timedelta(hours=1)
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
async def store(postgresql_url: str) -> AsyncIterator[Store]:
    async with opened(postgresql_url) as store:
        yield store


def _giver(of: Credential) -> Giver:
    return Giver(of.tenant, of.principal, of.scopes, of.root, of.id, of.ends_at or of.expires_at)


async def _is_good(credentials: Credentials, shown: str) -> bool:
    token = parse_token(shown)
    assert token is not None
    return await credentials.find(token) is not None


async def _caught(
    monkeypatch: pytest.MonkeyPatch, giving: Callable[[], Awaitable[tuple[Credential, str]]]
) -> tuple[Awaitable[tuple[Credential, str]], asyncio.Event]:
    """A credential that is being given, with its row written and its transaction not at its end; and what lets it go
    on."""
    written, go_on = asyncio.Event(), asyncio.Event()
    insert = module.Credentials._insert

    async def held(self: Credentials, *arguments: object) -> str:
        shown = await insert(self, *arguments)  # type: ignore[arg-type]
        written.set()
        await go_on.wait()
        return shown

    with monkeypatch.context() as patch:
        patch.setattr(module.Credentials, "_insert", held)
        task = asyncio.ensure_future(giving())
        await bounded(written.wait())
    return task, go_on


async def _waits(url: str) -> None:
    """Returns when somebody waits for a lock."""
    watcher = await asyncpg.connect(url)

    async def one_waits() -> bool:
        return bool(await watcher.fetchval(_WAITS))

    try:
        await until_true(one_waits)
    finally:
        await watcher.close()


@pytest.mark.parametrize("what", ["session", "key"])
async def test_a_ticket_that_is_being_given_ends_with_its_session_and_with_its_key(
    what: str, store: Store, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(store.database)
    key, _ = await credentials.create_key(TENANT, "key", frozenset({"read"}), None, "me")
    session, _ = await credentials.create_session(_giver(key), _HOUR, _HOUR)
    giving, go_on = await _caught(
        monkeypatch, lambda: credentials.create_ticket(_giver(session), frozenset(), True, _HOUR)
    )
    ending = asyncio.ensure_future(
        credentials.end_session(TENANT, session.id, "me")
        if what == "session"
        else credentials.revoke_key(TENANT, key.id, "me")
    )
    await _waits(postgresql_url)
    go_on.set()
    [(ticket, shown)] = await bounded(giving)
    [ended] = await bounded(ending)
    assert not await _is_good(credentials, shown)
    assert {session.id, ticket.id} <= set(ended)


async def test_a_session_that_is_being_given_ends_with_its_key(
    store: Store, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(store.database)
    key, _ = await credentials.create_key(TENANT, "key", frozenset({"read"}), None, "me")
    giving, go_on = await _caught(monkeypatch, lambda: credentials.create_session(_giver(key), _HOUR, _HOUR))
    ending = asyncio.ensure_future(credentials.revoke_key(TENANT, key.id, "me"))
    await _waits(postgresql_url)
    go_on.set()
    [(session, shown)] = await bounded(giving)
    [ended] = await bounded(ending)
    assert not await _is_good(credentials, shown)
    assert set(ended) == {key.id, session.id}


async def test_what_a_session_has_begun_ends_with_it_and_so_do_the_tickets_of_that(store: Store) -> None:
    credentials = Credentials(store.database)
    key, _ = await credentials.create_key(TENANT, "key", frozenset({"read"}), None, "me")
    first, _ = await credentials.create_session(_giver(key), _HOUR, _HOUR)
    second, _ = await credentials.create_session(_giver(first), _HOUR, _HOUR)
    ticket, shown = await credentials.create_ticket(_giver(second), frozenset(), True, _HOUR)
    assert sorted(await credentials.end_session(TENANT, first.id, "me")) == sorted([first.id, second.id, ticket.id])
    assert not await _is_good(credentials, shown)
    with pytest.raises(CredentialEnded):
        await credentials.create_ticket(_giver(second), frozenset(), True, _HOUR)
