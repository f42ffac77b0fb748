"""`python -m server keys` and `audit`: for who has the database and no key yet."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.credentials import Credential, Credentials, parse_token
from tests.storage.store import TIMEOUT, opened_database

_ROOT = Path(__file__).parents[2]


def _run(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=_ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _found(url: str, shown: str) -> Credential | None:
    async def find() -> Credential | None:
        token = parse_token(shown)
        assert token is not None
        async with opened_database(url) as database:
            return await Credentials(database).find(token)

    return asyncio.run(find())


def test_a_key_is_made_listed_and_revoked(database_url: str) -> None:
    create = ("keys", "create", "the back end", "--scopes", "write,read", "--tenant", "acme", "--days", "1.5")
    code, shown, said = _run(database_url, *create)
    assert (code, said) == (0, "")
    found = _found(database_url, shown.strip())
    assert found is not None
    assert (found.tenant, found.name, found.scopes) == ("acme", "the back end", frozenset({"read", "write"}))
    code, listed, _ = _run(database_url, "keys", "list", "--tenant", "acme")
    assert code == 0
    row = json.loads(listed)
    assert (row["id"], row["scopes"], row["created_by"], row["revoked_at"]) == (
        found.id,
        ["read", "write"],
        "system",
        None,
    )
    assert shown.strip() not in listed
    assert _run(database_url, "keys", "list") == (0, "", "")
    assert _run(database_url, "keys", "revoke", found.id)[0] == 1  # of another tenant
    assert _run(database_url, "keys", "revoke", found.id, "--tenant", "acme") == (0, "1 revoked.\n", "")
    again = _run(database_url, "keys", "revoke", shown.strip(), "--tenant", "acme")  # the whole key names it as well
    assert again == (0, "It was revoked before.\n", "")
    assert _found(database_url, shown.strip()) is None
    deeds = [json.loads(line) for line in _run(database_url, "audit", "--tenant", "acme")[1].splitlines()]
    assert [(deed["principal"], deed["action"], deed["subject"]) for deed in deeds] == [
        ("system", "key.create", found.id),
        ("system", "key.revoke", found.id),
    ]
    assert _run(database_url, "audit", "--tenant", "default") == (0, "", "")
    assert len(_run(database_url, "audit", "--days", "1")[1].splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys",), "command"),
        (("keys", "create", "x"), "--scopes"),
        (("keys", "create", "x", "--scopes", "all"), "read, write, run, admin"),
        (("keys", "create", "", "--scopes", "read"), "1 to 200 printable characters"),
        (("keys", "create", "x", "--scopes", "read", "--days", "0"), "number of days"),
        (("keys", "create", "x", "--scopes", "read", "--tenant", "a\nb"), "printable characters"),
        (("keys", "revoke", "not-an-id"), "16 hexadecimal digits"),
        (("keys", "revoke"), "id"),
        (("audit", "--days", "x"), "number of days"),
        (("serve",), "usage"),
    ],
)
def test_arguments_that_say_nothing_are_refused_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    code, output, error = _run("sqlite:////nowhere/at/all.db", *arguments)
    assert (code, output) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_a_database_that_cannot_be_reached_is_said_in_a_sentence() -> None:
    code, output, error = _run("postgresql://127.0.0.1:1/nothing", "keys", "list")
    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1/nothing" in error
