"""What a test is given is as new, whatever the one before it did."""

import psycopg
import pytest

from tests.postgres_server import PostgresServer
from tests.prepared_databases import PreparedDatabases

_ALL = 4  # more than lie ready: the one that was given back is among them


_MANY = (
    "INSERT INTO audit SELECT gen_random_uuid(), now(), repeat('t', 300), 'p', 'a', 's' FROM generate_series(1, 20000)"
)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("INSERT INTO audit VALUES (gen_random_uuid(), now(), 't', 'p', 'a', 's')", True),
        ("UPDATE timeline SET epoch = 'other'", False),
        ("CREATE TABLE more (id int)", False),
        ("DROP INDEX ix_credentials_root", False),
        ("ALTER TABLE audit ADD COLUMN more text", False),
        ("CREATE OR REPLACE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
        (_MANY, False),
    ],
)
def test_what_is_given_back_is_emptied_or_made_anew(
    postgres: PostgresServer, prepared_databases: PreparedDatabases, change: str, kept: bool
) -> None:
    name = prepared_databases.take()
    with psycopg.connect(postgres.url(name), autocommit=True) as open_still:
        open_still.execute(change)
        prepared_databases.give_back(name)
        taken = [prepared_databases.take() for _ in range(_ALL)]
    assert (name in taken) == kept
    for each in taken:
        with psycopg.connect(postgres.url(each), autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
            assert connection.execute("SELECT epoch <> 'other' FROM timeline").fetchone() == (True,)
            assert connection.execute("SELECT to_regclass('more'), to_regproc('more')").fetchone() == (None, None)
            assert connection.execute("SELECT to_regclass('ix_credentials_root') IS NOT NULL").fetchone() == (True,)
        prepared_databases.give_back(each)
