"""What a test is given is as new, whatever the one before it did."""

import psycopg
import pytest

from tests.postgres_server import PostgresServer
from tests.prepared_databases import PreparedDatabases

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
        ("ALTER FUNCTION commit_group_3 SET lock_timeout = '50ms'", False),
        (_MANY, False),
    ],
)
def test_what_is_not_as_new_without_its_rows_is_made_anew(
    postgres: PostgresServer, prepared_databases: PreparedDatabases, change: str, kept: bool
) -> None:
    name = prepared_databases.take()
    with psycopg.connect(postgres.url(name), autocommit=True) as open_still:
        open_still.execute(change)
        assert prepared_databases._emptied(name) == kept
        with pytest.raises(psycopg.OperationalError):
            open_still.execute("SELECT 1")
    with psycopg.connect(postgres.url(name), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
    prepared_databases.give_back(name)
