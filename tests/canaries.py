"""Secrets that can be told from everything else, and where they are found again."""

from __future__ import annotations

import asyncio
import base64
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
from psycopg import sql

_TIMEOUT = 20.0
_SQLITE = "sqlite:///"


class Canaries:
    """The secrets of one test, each with the place where it was put in."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def make(self, place: str) -> str:
        """One of 64 hexadecimal digits, as long as the secret of a credential."""
        return self.add(place, secrets.token_hex(32))

    def add(self, place: str, secret: str) -> str:
        """A secret that somebody else has made."""
        assert len(secret) >= 32, secret
        self._places[secret] = place
        return secret

    def found_in(self, text: bytes) -> list[str]:
        """The places of those that are in `text`: as they are, in hexadecimal or in Base64. Percent-encoding and JSON
        change nothing of them."""
        lower = text.lower()
        return [
            place
            for secret, place in self._places.items()
            if secret.lower().encode() in lower
            or secret.encode().hex().encode() in lower
            or any(form in text for form in _in_base64(secret.encode()))
        ]


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """What is the same of it wherever it begins in what is encoded."""
    for before in range(3):
        whole = (before + len(secret)) // 3 * 3 - before
        encoded = base64.b64encode(b"\0" * before + secret[:whole])[-(-before * 4 // 3) :]
        yield encoded
        yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


async def say(port: int, request: bytes, *, until: bytes | None = None, cut: bool = False) -> bytes:
    """All that the server on 127.0.0.1 answers to these bytes: to the end of the connection, or up to `until`.

    With `cut`, nothing more comes from here, as far as the server can see.
    """
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = bytearray()
        try:
            writer.write(request)
            if cut:
                writer.write_eof()
            while (until is None or until not in answer) and (data := await reader.read(65_536)):
                answer += data
        except ConnectionResetError:
            pass  # it has not read all that was sent
        finally:
            writer.close()
    return bytes(answer)


def stored(database_url: str) -> dict[str, bytes]:
    """All rows of each table, every column as text; of SQLite the bytes of its files, too."""
    if database_url.startswith(_SQLITE):
        path = Path(database_url.removeprefix(_SQLITE))
        with closing(sqlite3.connect(path)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            found = {name: repr(connection.execute(f'SELECT * FROM "{name}"').fetchall()).encode() for name in names}
        files = path.parent.glob(f"{path.name}*")
        return found | {file.name: file.read_bytes() for file in files}
    with psycopg.connect(database_url) as server:
        tables = server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: repr(
                server.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name))).fetchall()
            ).encode()
            for (name,) in tables
        }
