"""`python -m storage`: what an operator does to the database that `DATABASE_URL` names."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from server.command import Parser, carry_out, opened
from server.setting import SettingError
from server.settings import load
from storage import migrate
from storage.config import StorageConfig
from storage.errors import StorageUnavailable
from storage.records import now
from storage.retention import Retained, Retention
from storage.timeline import new_epoch

_MOST_DAYS = 36_500.0  # a century: beyond, there are no dates to count back to
_MOST_EVENTS = 2**53 - 1


def main() -> int:
    """0 when it is done; 1, with one sentence, when it cannot be; 2, with one, for arguments that say nothing."""
    arguments = _parse()
    try:
        config = load(os.environ).storage
    except SettingError as error:
        print(error, file=sys.stderr)
        return 1
    return carry_out(config, lambda: print(_done(arguments, config)))


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m storage", description="Admin commands on DATABASE_URL.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="bring the schema up to date; servers do this by themselves when they start")
    move = commands.add_parser("move", help="take the schema up or down to a revision")
    move.add_argument("revision", choices=["base", *migrate.revisions(), "head"])
    commands.add_parser(
        "new-epoch", help="after a backup was restored: every reader learns that what it holds is of another timeline"
    )
    retain = commands.add_parser(
        "retain", help="remove old events from the log; messages stay, and readers that come late are given these"
    )
    retain.add_argument("--days", type=_days, help="remove only what is older than so many days")
    retain.add_argument("--keep", type=_count, help="keep the newest so many events of each conversation")
    retain.add_argument("--conversation", type=_id, metavar="ID", help="of one conversation; without, of all")
    arguments = parser.parse_args()
    if arguments.command == "retain" and arguments.days is None and arguments.keep is None:
        retain.error("--days or --keep must be given: without, the whole log would go")
    return arguments


def _done(arguments: argparse.Namespace, config: StorageConfig) -> str:
    """What was done, in a sentence."""
    match arguments.command:
        case "move":
            migrate.move(config, arguments.revision)
            return f"{config.url} is at revision {arguments.revision}."
        case "new-epoch":
            _must_be_there(config)
            return f"{config.url} has a new epoch: {new_epoch(config)}."
        case "retain":
            _must_be_there(config)
            retained = asyncio.run(_retain(config, arguments.days, arguments.keep or 0, arguments.conversation))
            events, conversations = _many(retained.events, "event"), _many(retained.conversations, "conversation")
            return f"{config.url}: {events} of {conversations} removed."
    return f"{config.url} is up to date; its epoch is {migrate.upgrade(config)}."


def _must_be_there(config: StorageConfig) -> None:
    """Raises `StorageUnavailable` for an SQLite file that would be made: in a new one there is nothing to do.

    Whoever mistypes the path of a restored backup must not be told that it has a new epoch.
    """
    if config.url.dialect == "sqlite" and not Path(config.url.dsn).exists():
        raise StorageUnavailable("there is no such file")


async def _retain(config: StorageConfig, days: float | None, keep: int, conversation_id: str | None) -> Retained:
    before = None if days is None else now() - timedelta(days=days)
    async with opened(config) as database:
        return await Retention(database).retain(before=before, keep=keep, conversation_id=conversation_id)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"must be a number of days from 0 to {_MOST_DAYS:.0f}, not {text!r}")
    return days


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MOST_EVENTS):
        raise argparse.ArgumentTypeError(f"must be a whole number of events, 0 or more, not {text!r}")
    return int(text)


def _id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a conversation's id, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
