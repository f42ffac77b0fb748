"""`python -m storage`: what it does, what it says, and what it refuses."""

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from storage import __main__ as command
from storage import migrate
from storage.config import StorageConfig
from storage.records import new_id, now
from storage.url import parse_database_url
from tests.storage.author import set_age
from tests.storage.store import TENANT, TIMEOUT, opened

_ROOT = Path(__file__).parents[2]


def _run(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "storage", *arguments],
        cwd=_ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def _arrange(url: str) -> list[str]:
    """Two conversations of ten events, of which six are old."""
    async with opened(url) as store:
        made = [await store.conversation() for _ in range(2)]
        for conversation in made:
            await store.post_many(conversation, ["text"] * 10)
            await set_age(store, conversation, now() - timedelta(days=10), first=1, last=6)
        return made


async def _floors(url: str, conversations: list[str]) -> list[int]:
    async with opened(url) as store:
        heads = (await store.log.heads(TENANT, conversations)).heads
        return [heads[conversation].floor for conversation in conversations]


def test_retain_removes_what_is_old_and_says_what_it_removed(database_url: str) -> None:
    conversations = asyncio.run(_arrange(database_url))
    shown = parse_database_url(database_url)
    assert _run(database_url, "retain", "--days", "5", "--keep", "7", "--conversation", conversations[1].upper()) == (
        0,
        f"{shown}: 3 events of 1 conversation removed.\n",
        "",
    )
    assert asyncio.run(_floors(database_url, conversations)) == [0, 3]
    assert _run(database_url, "retain", "--days", "5") == (0, f"{shown}: 9 events of 2 conversations removed.\n", "")
    assert _run(database_url, "retain", "--keep", "3") == (0, f"{shown}: 2 events of 2 conversations removed.\n", "")
    assert asyncio.run(_floors(database_url, conversations)) == [7, 7]


def test_retain_says_that_there_is_no_such_conversation(sqlite_url: str) -> None:
    shown = parse_database_url(sqlite_url)
    assert _run(sqlite_url, "retain", "--keep", "3", "--conversation", new_id()) == (
        1,
        "",
        f"{shown}: no such conversation.\n",
    )


def test_new_epoch_begins_another_timeline(database_url: str) -> None:
    config = StorageConfig(parse_database_url(database_url))
    old = migrate.upgrade(config)
    code, said, _ = _run(database_url, "new-epoch")
    new = migrate.upgrade(config)
    assert (code, said) == (0, f"{config.url} has a new epoch: {new}.\n")
    assert new != old


@pytest.mark.parametrize("arguments", [["retain", "--keep", "1"], ["new-epoch"]])
def test_a_database_that_is_not_there_is_said_in_one_sentence(arguments: list[str]) -> None:
    code, said, error = _run("postgresql://user:secret@127.0.0.1:1/nothing", *arguments)
    assert (code, said) == (1, "")
    assert error == "postgresql://127.0.0.1:1/nothing: the connection failed: OperationalError.\n"


@pytest.mark.parametrize("arguments", [["retain", "--keep", "1"], ["new-epoch"]])
def test_no_file_is_made_where_there_is_no_database(arguments: list[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mistyped/swarm.db"
    assert _run(url, *arguments) == (1, "", f"{url}: there is no such file.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["retain", "--keep", "1"], ["new-epoch"], ["upgrade"]])
def test_a_file_that_is_no_database_is_said_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "swarm.db"
    path.write_text("-- a dump by pg_dump, say\n" * 100)
    url = f"sqlite:///{path}"
    assert _run(url, *arguments) == (1, "", f"{url}: SQLITE_NOTADB.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("retain", "retain: --days or --keep must be given: without, the whole log would go."),
        ("retain --conversation 01900000-0000-7000-8000-000000000000", "retain: --days or --keep must be given"),
        ("retain --days many", "retain: argument --days: must be a number of days from 0 to 36500, not 'many'."),
        ("retain --days -1", "retain: argument --days: must be a number of days from 0 to 36500, not '-1'."),
        ("retain --days nan", "retain: argument --days: must be a number of days from 0 to 36500, not 'nan'."),
        ("retain --days 1e9", "retain: argument --days: must be a number of days from 0 to 36500, not '1e9'."),
        ("retain --keep 1.5", "retain: argument --keep: must be a whole number of events, 0 or more, not '1.5'."),
        ("retain --keep -1", "retain: argument --keep: must be a whole number of events, 0 or more, not '-1'."),
        ("retain --keep 99999999999999999999", "retain: argument --keep: must be a whole number of events, 0 or more"),
        ("retain --keep 1 --conversation 7", "retain: argument --conversation: must be a conversation's id, not '7'."),
        ("retain --keep", "retain: argument --keep: expected one argument."),
        ("retain 7", ": unrecognized arguments: 7."),
        ("new_epoch", ": argument command: invalid choice: 'new_epoch'"),
        ("", ": the following arguments are required: command."),
    ],
)
def test_arguments_that_say_nothing_are_refused_in_one_sentence(
    arguments: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["storage", *arguments.split()])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    said, error = capsys.readouterr()
    assert (exit_.value.code, said) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith("python -m storage")
    assert sentence in error
