"""Alembic's entry: runs the migrations on the connection that `storage.migrate` hands over, in one transaction."""

from alembic import context

from storage.migrate import declare_compatibility, wait_briefly
from storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
with context.begin_transaction():
    wait_briefly(connection)
    context.run_migrations()
    declare_compatibility(connection)
