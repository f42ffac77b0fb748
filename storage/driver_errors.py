"""What the drivers raise, as storage's own errors."""

from __future__ import annotations

import sqlite3

import asyncpg
import psycopg
import sqlalchemy.exc

from storage.errors import StorageError, StorageFull, StorageUnavailable

# SQLSTATE classes (PostgreSQL, appendix A) of what passes by itself or by the operator's hand: connection exceptions,
# transaction rollback (deadlocks), resources, object state (lock timeouts), operator intervention, system errors;
# and refused log-ins and absent databases, which at this point mean that the database is not there yet.
_PASSING = frozenset({"08", "40", "53", "55", "57", "58", "28", "3D", "25"})
_DISK_FULL = "53100"
_SQLITE_PASSING = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_CANTOPEN",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_NOTADB",  # another file stands where the database should
)

# The connection is gone. InternalClientError is how asyncpg puts it to whoever comes between the server's farewell and
# the end of the connection ("cannot switch to state …").
_LOST = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def as_storage_error(error: BaseException) -> StorageError | None:
    """The storage error that `error` amounts to, or None where it is a defect of ours."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return StorageUnavailable("no database connection became free in time")
    error = _drivers_own(error)
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state == _DISK_FULL:
            return StorageFull("the database has no room left")
        return StorageUnavailable(type(error).__name__) if state[:2] in _PASSING else None
    if isinstance(error, (psycopg.OperationalError, *_LOST)):
        return StorageUnavailable(f"the connection failed: {type(error).__name__}")
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            return StorageFull("the disk has no room left")
        return StorageUnavailable(name) if name.startswith(_SQLITE_PASSING) else None
    return None


def without_values(error: BaseException) -> str | None:
    """What a driver's error says, but for the values that it was about; None for an error that is no driver's.

    PostgreSQL quotes rows and arguments in its messages and their details. Those about the statement itself (class 42)
    quote its text, which is ours.
    """
    own = _drivers_own(error)
    if isinstance(own, asyncpg.PostgresError | psycopg.Error):
        about = own.diag if isinstance(own, psycopg.Error) else own
        names = [getattr(about, name, None) for name in ("table_name", "column_name", "constraint_name")]
        state = own.sqlstate or ""
        said = [str(own.args[0]).splitlines()[0]] if state.startswith("42") and own.args else []
        return " ".join((type(own).__name__, state, *filter(None, names), *said))
    if isinstance(own, sqlite3.Error):  # its messages name tables and columns; but a trigger says what it likes
        name = getattr(own, "sqlite_errorname", "")
        return f"{type(own).__name__} {name}" + ("" if name == "SQLITE_CONSTRAINT_TRIGGER" else f" {own}")
    if isinstance(own, sqlalchemy.exc.StatementError):
        return f"{type(own).__name__} {type(own.orig).__name__}"
    return None


def outcome_is_unknown(error: BaseException) -> bool:
    """Whether what failed with `error`, or with a storage error made of it, may have been carried out all the same.

    It may where the server never said: the connection was lost in the middle, or the time was up. Where the server
    itself refused, the transaction is gone; where it could not be reached, there was none.
    """
    cause = _drivers_own(error)
    if isinstance(cause, asyncpg.PostgresError):
        return (cause.sqlstate or "")[:2] in {"08", "57"} and not isinstance(cause, asyncpg.CannotConnectNowError)
    if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
        return False
    return isinstance(cause, _LOST)


def may_pass_at_once(error: BaseException) -> bool:
    """Whether `error` came of other transactions, so that the same may pass when it is tried again.

    A deadlock, or a lock waited for too long.
    """
    cause = _drivers_own(error)
    return isinstance(cause, asyncpg.PostgresError) and (cause.sqlstate or "")[:2] in {"40", "55"}


def _drivers_own(error: BaseException) -> BaseException:
    """What the driver itself raised, beneath what storage, SQLAlchemy and its adapter of asyncpg made of it."""
    if isinstance(error, StorageError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, sqlalchemy.exc.EmulatedDBAPIException):
        error = error.driver_exception
    return error
