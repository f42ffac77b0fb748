"""Credentials: drawn at random, shown once, kept as digests; good until they expire or are revoked, and with them what
came from them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import timedelta
from typing import Any

import pytest

from storage import credentials as module
from storage.audit import entries
from storage.credentials import SCOPES, Credential, Credentials, Giver, parse_token
from storage.errors import CredentialEnded, InvalidCursor, NotFound
from storage.records import now
from tests.storage.store import TENANT, Store

_ALL = frozenset(SCOPES)
_HOUR = timedelta(hours=1)


@pytest.fixture
def credentials(store: Store) -> Credentials:
    return Credentials(store.database)


def _giver(of: Credential) -> Giver:
    return Giver(of.tenant, of.principal, of.scopes, of.root, of.id, of.ends_at or of.expires_at)


async def _found(credentials: Credentials, shown: str, slide: timedelta | None = None) -> Credential | None:
    token = parse_token(shown)
    assert token is not None
    return await credentials.find(token, slide)


async def test_a_key_is_shown_once_and_kept_as_a_digest(store: Store, credentials: Credentials) -> None:
    made, shown = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    assert re.fullmatch(f"swarm_key_{made.id}_[0-9a-f]{{64}}", shown)
    secret = shown.rpartition("_")[2]
    everything = await store.everything()
    assert secret not in everything
    assert hashlib.sha256(secret.encode()).hexdigest() in everything
    assert await _found(credentials, shown) == made
    assert await credentials.get(TENANT, made.id) == made


async def test_no_two_are_alike(credentials: Credentials) -> None:
    shown = {(await credentials.create_key(TENANT, "name", _ALL, None, "me"))[1] for _ in range(20)}
    assert len({part for key in shown for part in key.split("_")[2:]}) == 40


@pytest.mark.parametrize(
    "text",
    [
        "",
        "swarm_key_",
        "swarm_key_0123456789abcdef",
        "swarm_key_0123456789abcdef_" + "0" * 63,
        "swarm_key_0123456789abcdef_" + "0" * 65,
        "swarm_key_0123456789ABCDEF_" + "0" * 64,
        "swarm_lock_0123456789abcdef_" + "0" * 64,
        " swarm_key_0123456789abcdef_" + "0" * 64,
        "swarm_key_0123456789abcdef_" + "0" * 64 + "\n",
        "swarm_key_0123456789abcde\u0661_" + "0" * 64,
    ],
)
def test_what_was_never_given_out_is_not_looked_for(text: str) -> None:
    assert parse_token(text) is None


async def test_another_secret_another_kind_or_another_id_is_not_good(credentials: Credentials) -> None:
    made, shown = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    other, _ = await credentials.create_key(TENANT, "other", _ALL, None, "me")
    secret = shown.rpartition("_")[2]
    wrong = ("1" if secret[0] == "0" else "0") + secret[1:]
    for bad in (
        f"swarm_key_{made.id}_{wrong}",
        f"swarm_session_{made.id}_{secret}",
        f"swarm_ticket_{made.id}_{secret}",
        f"swarm_key_{other.id}_{secret}",
        f"swarm_key_{'0' * 16}_{secret}",
    ):
        assert await _found(credentials, bad) is None


async def test_what_has_expired_is_not_good(credentials: Credentials) -> None:
    _, shown = await credentials.create_key(TENANT, "name", _ALL, now() - timedelta(seconds=1), "me")
    assert await _found(credentials, shown) is None


async def test_a_revoked_key_takes_along_what_came_from_it(credentials: Credentials) -> None:
    key, shown_key = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    other, shown_other = await credentials.create_key(TENANT, "other", _ALL, None, "me")
    session, shown_session = await credentials.create_session(_giver(key), _HOUR, _HOUR)
    ticket, shown_ticket = await credentials.create_ticket(_giver(session), frozenset({"c"}), False, _HOUR)
    await credentials.create_session(_giver(other), _HOUR, _HOUR)
    assert sorted(await credentials.revoke_key(TENANT, key.id, "me")) == sorted([key.id, session.id, ticket.id])
    for shown in (shown_key, shown_session, shown_ticket):
        assert await _found(credentials, shown) is None
    assert await _found(credentials, shown_other) is not None
    assert await credentials.revoke_key(TENANT, key.id, "me") == []  # again: as before
    assert (await credentials.get(TENANT, key.id)).revoked_at is not None


async def test_only_keys_of_the_tenant_are_revoked_listed_and_read(credentials: Credentials) -> None:
    key, shown = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    session, _ = await credentials.create_session(_giver(key), _HOUR, _HOUR)
    for tenant, identifier in (("another", key.id), (TENANT, session.id), (TENANT, "0" * 16)):
        for asked in (credentials.revoke_key(tenant, identifier, "me"), credentials.get(tenant, identifier)):
            with pytest.raises(NotFound):
                await asked
    assert await credentials.end_session("another", session.id, "me") == []
    assert await credentials.page("another", 10, None) == ([], None)
    assert [found.id for found in (await credentials.page(TENANT, 10, None))[0]] == [key.id]
    assert await _found(credentials, shown) is not None


async def test_pages_hold_each_key_once(credentials: Credentials) -> None:
    made = {(await credentials.create_key(TENANT, f"{n}", _ALL, None, "me"))[0].id for n in range(7)}
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = await credentials.page(TENANT, 3, cursor)
        found += [key.id for key in page]
        if cursor is None:
            break
    assert found == sorted(made)
    with pytest.raises(InvalidCursor):
        await credentials.page(TENANT, 3, "x")


async def test_a_session_slides_but_not_beyond_its_end(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    begun = now()
    made, shown = await credentials.create_session(_giver(key), _HOUR, 2 * _HOUR)

    def at(time: timedelta) -> None:
        monkeypatch.setattr(module, "now", lambda: begun + time)

    at(timedelta(minutes=1))  # too soon to be written down
    assert (await _found(credentials, shown, _HOUR)) == made
    at(timedelta(minutes=50))
    slid = await _found(credentials, shown, _HOUR)
    assert slid is not None
    assert slid.expires_at == begun + timedelta(minutes=110)
    at(timedelta(minutes=100))
    slid = await _found(credentials, shown, _HOUR)
    assert slid is not None
    assert slid.expires_at == made.ends_at
    at(timedelta(minutes=121))
    assert await _found(credentials, shown, _HOUR) is None


async def test_a_revoked_session_does_not_slide_back_to_life(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is revoked between the look at it and the writing of its new end."""
    key, _ = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    made, shown = await credentials.create_session(_giver(key), _HOUR, 9 * _HOUR)
    set_expiry = credentials._set_expiry

    async def late(credential_id: str, expires: Any) -> None:
        await credentials.end_session(TENANT, made.id, "me")
        await set_expiry(credential_id, expires)

    monkeypatch.setattr(credentials, "_set_expiry", late)
    monkeypatch.setattr(module, "now", lambda: made.created_at + timedelta(minutes=50))
    await _found(credentials, shown, _HOUR)
    assert await _found(credentials, shown, _HOUR) is None
    assert await credentials.ended([made.id]) == [made.id]


async def test_nothing_outlives_what_it_came_from(credentials: Credentials) -> None:
    key, _ = await credentials.create_key(TENANT, "name", _ALL, now() + _HOUR, "me")
    session, _ = await credentials.create_session(_giver(key), 5 * _HOUR, 9 * _HOUR)
    assert (session.expires_at, session.ends_at) == (key.expires_at, key.expires_at)
    ticket, _ = await credentials.create_ticket(_giver(session), frozenset(), True, 9 * _HOUR)
    assert (ticket.expires_at, ticket.ends_at) == (key.expires_at, key.expires_at)


async def test_a_ticket_reads_and_no_more(credentials: Credentials) -> None:
    key, _ = await credentials.create_key(TENANT, "name", _ALL, None, "me")
    _, shown = await credentials.create_ticket(_giver(key), frozenset({"a", "b"}), False, _HOUR)
    found = await _found(credentials, shown)
    assert found is not None
    assert (found.scopes, found.conversations, found.feed) == (frozenset({"read"}), frozenset({"a", "b"}), False)


@pytest.mark.parametrize("first", ["revoke", "give"])
async def test_a_session_and_the_revocation_of_its_key_at_once(
    store: Store, credentials: Credentials, first: str
) -> None:
    """Whichever comes first, no session is left that is good."""
    for _ in range(5):
        key, _ = await credentials.create_key(TENANT, "name", _ALL, None, "me")
        doing: dict[str, Any] = {
            "revoke": credentials.revoke_key(TENANT, key.id, "me"),
            "give": credentials.create_session(_giver(key), _HOUR, _HOUR),
        }
        order = [first, *({"revoke", "give"} - {first})]
        results = dict(
            zip(order, await asyncio.gather(*(doing[name] for name in order), return_exceptions=True), strict=True)
        )
        if isinstance(results["give"], BaseException):
            assert isinstance(results["give"], CredentialEnded)
        else:
            assert await _found(credentials, results["give"][1]) is None


async def test_what_has_ended_is_told(credentials: Credentials) -> None:
    good, _ = await credentials.create_key(TENANT, "name", _ALL, now() + _HOUR, "me")
    expired, _ = await credentials.create_key(TENANT, "name", _ALL, now() - _HOUR, "me")
    revoked, _ = await credentials.create_key("another", "name", _ALL, None, "me")
    await credentials.revoke_key("another", revoked.id, "me")
    asked = [good.id, expired.id, revoked.id, "0" * 16]
    assert sorted(await credentials.ended(asked)) == sorted(asked[1:])
    assert await credentials.ended([]) == []


async def test_sessions_and_tickets_are_forgotten_a_day_after_their_end_and_keys_never(
    store: Store, credentials: Credentials
) -> None:
    key, _ = await credentials.create_key(TENANT, "name", _ALL, now() - 2 * timedelta(days=1), "me")
    giver = Giver(TENANT, "me", _ALL, "jwt", None, None)
    old, _ = await credentials.create_session(giver, -timedelta(days=2), _HOUR)
    late, _ = await credentials.create_ticket(giver, frozenset(), True, -_HOUR)
    live, _ = await credentials.create_session(giver, _HOUR, _HOUR)
    await credentials.forget()
    left = {row[0] for row in await store.execute("SELECT id FROM credentials")}
    assert left == {key.id, late.id, live.id}
    assert old.id not in left


async def test_the_audit_log_has_who_made_and_ended_what(store: Store, credentials: Credentials) -> None:
    key, _ = await credentials.create_key(TENANT, "name", _ALL, None, "ann")
    session, _ = await credentials.create_session(_giver(key), _HOUR, _HOUR)
    for _ in range(2):
        await credentials.end_session(TENANT, session.id, "bob")
        await credentials.revoke_key(TENANT, key.id, "eve")
    assert [(entry.principal, entry.action, entry.subject) async for entry in entries(store.database, None, None)] == [
        ("ann", "key.create", key.id),
        (key.principal, "session.create", session.id),
        ("bob", "session.end", session.id),
        ("eve", "key.revoke", key.id),
    ]
