"""`python -m server keys` and `audit`: for who has the database and no key yet."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from server import __main__ as command
from storage.credentials import Credential, Credentials, parse_token
from tests.storage.store import opened_database

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in this process: exit code, standard output, standard error."""

    def carried_out(url: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setattr(sys, "argv", ["python -m server", *arguments])
        monkeypatch.setattr("server.command.logs.configure", lambda level: None)  # it is for a whole process
        capsys.readouterr()  # what was said before
        with capture_logs():
            try:
                code = command.main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        return code, *capsys.readouterr()

    return carried_out


def _found(url: str, shown: str) -> Credential | None:
    async def find() -> Credential | None:
        token = parse_token(shown)
        assert token is not None
        async with opened_database(url) as database:
            return await Credentials(database).find(token)

    return asyncio.run(find())


def test_a_key_is_made_listed_and_revoked(database_url: str, run: Run) -> None:
    create = ("keys", "create", "the back end", "--scopes", "write,read", "--tenant", "acme", "--days", "1.5")
    code, shown, said = run(database_url, *create)
    assert (code, said) == (0, "")
    found = _found(database_url, shown.strip())
    assert found is not None
    assert (found.tenant, found.name, found.scopes) == ("acme", "the back end", frozenset({"read", "write"}))
    code, listed, _ = run(database_url, "keys", "list", "--tenant", "acme")
    assert code == 0
    row = json.loads(listed)
    assert (row["id"], row["scopes"], row["created_by"], row["revoked_at"]) == (
        found.id,
        ["read", "write"],
        "system",
        None,
    )
    assert shown.strip() not in listed
    assert run(database_url, "keys", "list") == (0, "", "")
    assert run(database_url, "keys", "revoke", found.id)[0] == 1  # of another tenant
    assert run(database_url, "keys", "revoke", found.id, "--tenant", "acme") == (0, "1 revoked.\n", "")
    again = run(database_url, "keys", "revoke", shown.strip(), "--tenant", "acme")  # the whole key names it as well
    assert again == (0, "It was revoked before.\n", "")
    assert _found(database_url, shown.strip()) is None
    deeds = [json.loads(line) for line in run(database_url, "audit", "--tenant", "acme")[1].splitlines()]
    assert [(deed["principal"], deed["action"], deed["subject"]) for deed in deeds] == [
        ("system", "key.create", found.id),
        ("system", "key.revoke", found.id),
    ]
    assert run(database_url, "audit", "--tenant", "default") == (0, "", "")
    assert len(run(database_url, "audit", "--days", "1")[1].splitlines()) == 2


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
def test_arguments_that_say_nothing_are_refused_in_a_sentence(arguments: tuple[str, ...], said: str, run: Run) -> None:
    code, output, error = run("sqlite:////nowhere/at/all.db", *arguments)
    assert (code, output) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_a_database_that_cannot_be_reached_is_said_in_a_sentence(run: Run) -> None:
    code, output, error = run("postgresql://127.0.0.1:1/nothing", "keys", "list")
    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1/nothing" in error
