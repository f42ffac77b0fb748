"""What all tests share: a PostgreSQL server, and the table of proofs."""

from collections.abc import Iterator

import pytest

from tests import proof
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server, started for the first test that asks for it.

    Tests share it, so each makes a database of its own; one that kills or stops a server starts another.
    """
    with PostgresServer() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the proofs found, after the tests."""
    table = proof.table()
    if table:
        counts = "full" if proof.is_full() else "reduced"
        terminalreporter.section(f"proofs, at {counts} counts")
        terminalreporter.write_line(table)
