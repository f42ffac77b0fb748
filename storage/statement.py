"""Statements that are built once and given to the driver.

SQLAlchemy's result path costs several times what the drivers themselves do for a page of rows, so hot reads use it only
to write the SQL: for each dialect once, with the order in which the driver wants its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from storage.url import DialectName

_DIALECTS: dict[DialectName, type[Dialect]] = {
    "postgresql": PGDialect_asyncpg,
    "sqlite": SQLiteDialect_aiosqlite,
}


class Statement:
    """A named read.

    `element` takes what differs from call to call through `bindparam`s; all of them are given each time.
    """

    def __init__(self, operation: str, element: ClauseElement) -> None:
        self.operation = operation
        self._element = element

    def text(self, dialect: DialectName) -> str:
        return self._compiled[dialect][0]

    def arguments(self, dialect: DialectName, values: dict[str, Any]) -> list[Any]:
        _, names, constants = self._compiled[dialect]
        return [constants[name] if name in constants else values[name] for name in names]

    @cached_property
    def _compiled(self) -> dict[DialectName, tuple[str, list[str], dict[str, Any]]]:
        compiled: dict[DialectName, tuple[str, list[str], dict[str, Any]]] = {}
        for name, dialect in _DIALECTS.items():
            result = self._element.compile(dialect=dialect())
            assert isinstance(result, SQLCompiler)
            # A number in the expression (`count + 1`) is a parameter too, one that knows its value.
            constants = {key: value for key, value in result.params.items() if value is not None}
            compiled[name] = (str(result), list(result.positiontup or ()), constants)
        return compiled


class RawStatement(Statement):
    """A named read whose SQL the dialects write too differently for one expression. Parameters by position."""

    def __init__(self, operation: str, *, postgresql: str, sqlite: str, parameters: list[str]) -> None:
        self.operation = operation
        self._texts: dict[DialectName, str] = {"postgresql": postgresql, "sqlite": sqlite}
        self._parameters = parameters

    def text(self, dialect: DialectName) -> str:
        return self._texts[dialect]

    def arguments(self, dialect: DialectName, values: dict[str, Any]) -> list[Any]:
        return [values[name] for name in self._parameters]


def array_parameter(dialect: DialectName, values: Sequence[Any]) -> object:
    """Many values as one parameter of a `RawStatement`: PostgreSQL has arrays, SQLite reads JSON (`json_each`)."""
    return msgspec.json.encode(values).decode() if dialect == "sqlite" else values
