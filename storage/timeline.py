"""The log's timeline: its epoch is in every event's id, and is new after a backup was restored.

What happened after the backup was made is gone, and its seqs are issued a second time, to other events. Under the new
epoch no reader takes these for those.
"""

from __future__ import annotations

import secrets

from sqlalchemy import update

from storage import migrate
from storage.config import StorageConfig
from storage.engines import sync_engine
from storage.tables import timeline

# No letters that can be taken for digits, or the other way round: an epoch is read aloud when something went wrong.
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_LENGTH = 6  # a billion of them: that one of many years ago is drawn again need not be thought of


def random_epoch() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def new_epoch(config: StorageConfig) -> str:
    """Begins a new timeline, and returns its epoch. Servers that are running find it by themselves.

    A restored backup may be of an older version: the schema is brought up to date first.
    """
    old = migrate.upgrade(config)
    while (epoch := random_epoch()) == old:
        pass
    with sync_engine(config).begin() as connection:
        connection.execute(update(timeline).values(epoch=epoch))
    return epoch
