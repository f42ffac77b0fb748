"""`DATABASE_URL` in the forms that people have, made right for each driver."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

DialectName = Literal["postgresql", "sqlite"]

_FORMS = "postgresql://user:password@host:port/name, postgres://… or sqlite:///path/to/file.db"
_POSTGRESQL = frozenset({"postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"})
_SQLITE = frozenset({"sqlite", "sqlite+aiosqlite"})
# What is reserved must be encoded (RFC 3986 §2.1). A password with a bare "@", "/" or "%" in it is taken apart in the
# wrong place, and libpq's message about it would quote it.
_CHARACTER = r"[^\s%/?#@\[\]]|%(?!00)[0-9A-Fa-f]{2}"
_HOST = rf"\[[0-9A-Za-z:.%]+\](?::[0-9]+)?|(?:{_CHARACTER})*"  # behind brackets comes a port, or nothing
_POSTGRESQL_REST = re.compile(rf"(?:(?:{_CHARACTER})*@)?(?:{_HOST})(?:/(?:{_CHARACTER})*)?(?:\?(?:{_CHARACTER}|/)*)?")


@dataclass(frozen=True)
class DatabaseUrl:
    """Where the database is.

    `dsn` is a libpq URI for PostgreSQL (both drivers read those) and a file's path for SQLite.
    """

    dialect: DialectName
    dsn: str = field(repr=False)  # it may hold a password

    def __str__(self) -> str:
        """The URL without user or password, for logs."""
        if self.dialect == "sqlite":
            return f"sqlite:///{self.dsn}"
        parts = urlsplit(self.dsn)
        place = parts.hostname or ""
        if parts.port:
            place += f":{parts.port}"
        return f"postgresql://{place}{parts.path}"


def parse_database_url(text: str) -> DatabaseUrl:
    """Raises `ValueError`, with one sentence that names the variable, for anything that is not one of the two
    databases.
    """
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if separator and scheme in _POSTGRESQL:
        try:
            parts = urlsplit(f"postgresql://{rest}")
            _ = parts.port  # raises for one that is no number
            if _POSTGRESQL_REST.fullmatch(rest) is None:
                raise ValueError("characters that must be encoded")
        except ValueError:
            raise ValueError(f"DATABASE_URL is not a valid address: it must look like {_FORMS}.") from None
        return DatabaseUrl("postgresql", f"postgresql://{rest}")
    # SQLAlchemy's convention: three slashes and a relative path, four and an absolute one.
    if separator and scheme in _SQLITE and rest.startswith("/") and len(rest) > 1 and "?" not in rest:
        path = rest[1:]
        if path != ":memory:":
            return DatabaseUrl("sqlite", str(Path(path)))
    raise ValueError(f"DATABASE_URL must look like {_FORMS}.")
