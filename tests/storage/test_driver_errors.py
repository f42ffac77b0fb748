"""What drivers raise is told apart: what passes, what may have happened all the same, and what is a defect."""

import sqlite3
from collections.abc import Callable

import asyncpg
import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from storage.driver_errors import as_storage_error, may_pass_at_once, outcome_is_unknown
from storage.errors import NotFound, StorageFull, StorageUnavailable


def _as_it_is(error: Exception) -> BaseException:
    return error


def _adapted(error: Exception) -> Exception:
    """As SQLAlchemy's adapter raises it where there is no connection yet."""
    adapted: Exception = AsyncAdapt_asyncpg_dbapi.Error(str(error), error)  # type: ignore[no-untyped-call]
    return adapted


def _wrapped(error: Exception) -> BaseException:
    """As SQLAlchemy raises it in its own connections."""
    return sqlalchemy.exc.DBAPIError("SELECT 1", None, _adapted(error))


def _translated(error: Exception) -> BaseException:
    """As storage raises it."""
    translated = as_storage_error(error) or error
    if translated is not error:
        translated.__cause__ = error
    return translated


def _translated_twice(error: Exception) -> BaseException:
    adapted = _adapted(error)
    translated = as_storage_error(adapted) or adapted
    if translated is not adapted:
        translated.__cause__ = adapted
    return translated


Form = Callable[[Exception], BaseException]
each_form = pytest.mark.parametrize("form", [_as_it_is, _adapted, _wrapped, _translated, _translated_twice])


@each_form
@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.CrashShutdownError("the server crashed"),
        asyncpg.QueryCanceledError("canceled"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_a_connection_was_lost_the_outcome_is_unknown(error: Exception, form: Form) -> None:
    raised = form(error)
    assert isinstance(as_storage_error(raised), StorageUnavailable)
    assert outcome_is_unknown(raised)
    assert not may_pass_at_once(raised)


@each_form
@pytest.mark.parametrize(
    "error",
    [
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.InvalidCatalogNameError("no such database"),
        asyncpg.InvalidPasswordError("no"),
        ConnectionRefusedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_the_server_was_not_reached_nothing_happened(error: Exception, form: Form) -> None:
    raised = form(error)
    assert isinstance(as_storage_error(raised), StorageUnavailable)
    assert not outcome_is_unknown(raised)
    assert not may_pass_at_once(raised)


@each_form
@pytest.mark.parametrize(
    "error",
    [asyncpg.DeadlockDetectedError("d"), asyncpg.LockNotAvailableError("l"), asyncpg.SerializationError("s")],
    ids=lambda error: type(error).__name__,
)
def test_what_came_of_others_may_pass_at_once(error: Exception, form: Form) -> None:
    raised = form(error)
    assert isinstance(as_storage_error(raised), StorageUnavailable)
    assert not outcome_is_unknown(raised)
    assert may_pass_at_once(raised)


@each_form
@pytest.mark.parametrize(
    "error",
    [asyncpg.UniqueViolationError("u"), asyncpg.UndefinedTableError("t"), asyncpg.CharacterNotInRepertoireError("c")],
    ids=lambda error: type(error).__name__,
)
def test_a_defect_stays_what_it_is(error: Exception, form: Form) -> None:
    raised = form(error)
    assert as_storage_error(raised) is None
    assert not outcome_is_unknown(raised)
    assert not may_pass_at_once(raised)


def test_a_full_disk_says_so() -> None:
    assert isinstance(as_storage_error(asyncpg.DiskFullError("f")), StorageFull)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorname = "SQLITE_FULL"
    assert isinstance(as_storage_error(full), StorageFull)


@pytest.mark.parametrize("name", ["SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED", "SQLITE_IOERR_WRITE"])
def test_a_file_that_others_use_is_unavailable(name: str) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = name
    assert isinstance(as_storage_error(error), StorageUnavailable)
    assert not outcome_is_unknown(error)


def test_storages_own_errors_and_those_of_nobody_stay_what_they_are() -> None:
    refusal = NotFound("message")
    assert as_storage_error(refusal) is refusal
    assert as_storage_error(ValueError()) is None
    assert as_storage_error(sqlite3.IntegrityError()) is None
    assert isinstance(as_storage_error(psycopg.OperationalError()), StorageUnavailable)
    assert isinstance(as_storage_error(sqlalchemy.exc.TimeoutError()), StorageUnavailable)
