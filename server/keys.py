"""`python -m server keys …` and `python -m server audit`: credentials and their history, for who has the database."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from server.command import Parser, carry_out, opened
from storage.audit import entries
from storage.config import StorageConfig
from storage.credentials import SCOPES, Credential, Credentials, Scope
from storage.database import Database
from storage.deed import SYSTEM
from storage.errors import NotFound
from storage.records import now

_PAGE = 500
_ID = re.compile(r"(?:swarm_key_)?([0-9a-f]{16})(?:_[0-9a-f]{64})?")
_MOST_DAYS = 36_500.0


def main(arguments: Sequence[str], config: StorageConfig) -> int:
    """The exit code. Exits with 2 for arguments that say nothing."""
    parsed = _parse(arguments)
    work = _COMMANDS[parsed.command](parsed)

    async def with_database() -> None:
        async with opened(config) as database:
            await work(database)

    return carry_out(config, lambda: asyncio.run(with_database()))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m server", description="Credentials in DATABASE_URL, and what was done with them.")
    groups = parser.add_subparsers(dest="group", required=True)
    commands = groups.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        dest="command", required=True
    )
    create = commands.add_parser("create", help="make a key, and print it: it is shown this once")
    create.add_argument("name", type=_text, help="what it is for")
    create.add_argument("--scopes", type=_scopes, required=True, help=f"of {', '.join(SCOPES)}; separated by commas")
    create.add_argument("--days", type=_days, help="how long it is good; without, until it is revoked")
    listing = commands.add_parser("list", help="print all keys of a tenant, as lines of JSON")
    revoke = commands.add_parser("revoke", help="revoke a key, and all that came from it")
    revoke.add_argument("id", type=_key_id, help="the key's id, as in swarm_key_ID_…, or the key itself")
    for command in (create, listing, revoke):
        command.add_argument("--tenant", type=_text, default="default", help="whose data it opens; default: default")
    audit = groups.add_parser("audit", help="print who changed and deleted what, as lines of JSON")
    audit.add_argument("--tenant", type=_text, help="only of this tenant")
    audit.add_argument("--days", type=_days, help="only of the last so many days")
    audit.set_defaults(command="audit")
    return parser.parse_args(arguments)


def _create(parsed: argparse.Namespace) -> Callable[[Database], Awaitable[None]]:
    async def create(database: Database) -> None:
        expires = None if parsed.days is None else now() + timedelta(days=parsed.days)
        _, key = await Credentials(database).create_key(parsed.tenant, parsed.name, parsed.scopes, expires, SYSTEM)
        print(key)

    return create


def _list(parsed: argparse.Namespace) -> Callable[[Database], Awaitable[None]]:
    async def listing(database: Database) -> None:
        cursor = None
        while True:
            keys, cursor = await Credentials(database).page(parsed.tenant, _PAGE, cursor)
            for key in keys:
                print(msgspec.json.encode(_shown(key)).decode())
            if cursor is None:
                return

    return listing


def _revoke(parsed: argparse.Namespace) -> Callable[[Database], Awaitable[None]]:
    async def revoke(database: Database) -> None:
        try:
            ended = await Credentials(database).revoke_key(parsed.tenant, parsed.id, SYSTEM)
        except NotFound:
            raise SystemExit(f"The tenant {parsed.tenant} has no key {parsed.id}.") from None
        # No process is told: each looks at what it believes within SWARM_RECHECK seconds.
        print(f"{len(ended)} revoked." if ended else "It was revoked before.")

    return revoke


def _audit(parsed: argparse.Namespace) -> Callable[[Database], Awaitable[None]]:
    async def audit(database: Database) -> None:
        since = None if parsed.days is None else now() - timedelta(days=parsed.days)
        async for entry in entries(database, parsed.tenant, since):
            print(msgspec.json.encode(entry).decode())

    return audit


_COMMANDS = {"create": _create, "list": _list, "revoke": _revoke, "audit": _audit}


def _shown(key: Credential) -> dict[str, str | datetime | list[Scope] | None]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created_by": key.created_by,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _text(text: str) -> str:
    if not (0 < len(text) <= 200 and text.isprintable()):
        raise argparse.ArgumentTypeError("must be 1 to 200 printable characters")
    return text


def _key_id(text: str) -> str:
    """The id alone: what may be a secret is not said again."""
    found = _ID.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("must be 16 hexadecimal digits, as in swarm_key_ID_…")
    return found[1]


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return msgspec.convert(text.split(","), frozenset[Scope])
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(SCOPES)}, separated by commas") from None


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 < days <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"must be a number of days, at most {_MOST_DAYS:.0f}")
    return days
