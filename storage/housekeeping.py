"""What a deleted conversation leaves behind, and keys, sessions and tickets that have expired, removed a little at a
time."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import and_, delete, select, update

from storage.credentials import Credentials
from storage.database import Database
from storage.idempotency import KEY_LIFE
from storage.records import now
from storage.recurring import Recurring
from storage.rows import to_time
from storage.tables import conversations, events, idempotency_keys, messages, runs, streaming_messages

_BATCH = 1_000  # rows in one transaction: what others may have to wait for
_CONVERSATIONS = 100  # looked at in one sweep
_PERIOD = 30.0  # seconds between sweeps
# A deleted conversation's row and its last event stay so long: hubs of other processes must find them.
_ROW_LIFE = timedelta(hours=24)

# A deleted conversation's count of messages once nothing is left of it but its row and its last event. That its floor
# has risen so far would not say so: retention may have raised it before.
_PURGED = -1


class Housekeeping(Recurring):
    """Nobody sees what it removes. Any number of processes may have one.

    A deleted conversation is gone for every reader when its deletion is acknowledged.
    """

    name = "housekeeping"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self) -> None:
        await self._database.wait_until_ready()

    async def turn(self) -> None:
        # Whoever closes it waits for the transaction under way.
        await self._database.to_its_end(self.sweep())

    def pause(self) -> float:
        return _PERIOD

    async def sweep(self) -> None:
        """Removes what there is to remove, in small transactions."""
        dialect = self._database.dialect
        long_ago = to_time(now() - _ROW_LIFE, dialect)
        async with self._database.transaction("housekeeping.find") as connection:
            found = await connection.execute(
                select(
                    conversations.c.id,
                    conversations.c.message_count,
                    conversations.c.last_seq,
                    conversations.c.floor_seq,
                )
                .where(conversations.c.deleted_at.is_not(None), conversations.c.message_count != _PURGED)
                .order_by(conversations.c.deleted_at)
                .limit(_CONVERSATIONS)
            )
            deleted = found.all()
        for row in deleted:
            await self._purge(row.id, row.message_count, row.floor_seq, row.last_seq)
        async with self._database.transaction("housekeeping.forget") as connection:
            # Only of what has been purged: the row is all that still knows of the messages of what has not.
            done = and_(conversations.c.deleted_at < long_ago, conversations.c.message_count == _PURGED)
            await connection.execute(
                delete(events).where(events.c.conversation_id.in_(select(conversations.c.id).where(done)))
            )
            await connection.execute(delete(conversations).where(done))
            await connection.execute(
                delete(idempotency_keys).where(idempotency_keys.c.created_at <= to_time(now() - KEY_LIFE, dialect))
            )

        await Credentials(self._database).forget()

    async def _purge(self, conversation_id: str, message_count: int, floor: int, last: int) -> None:
        for first in range(1, message_count + 1, _BATCH):
            async with self._database.transaction("housekeeping.messages") as connection:
                await connection.execute(
                    delete(messages).where(
                        messages.c.conversation_id == conversation_id,
                        messages.c.position.between(first, first + _BATCH - 1),
                    )
                )
        for table, identifier in ((streaming_messages, streaming_messages.c.message_id), (runs, runs.c.id)):
            of_it = table.c.conversation_id == conversation_id
            some = select(identifier).where(of_it).limit(_BATCH)
            removed = _BATCH
            while removed == _BATCH:
                async with self._database.transaction(f"housekeeping.{table.name}") as connection:
                    result = await connection.execute(delete(table).where(of_it, identifier.in_(some)))
                    removed = result.rowcount
        # The log loses a prefix, and its floor rises in the same transaction. The last event is conversation.deleted.
        while floor < last - 1:
            floor = min(floor + _BATCH, last - 1)
            async with self._database.transaction("housekeeping.events") as connection:
                # Another process may be further, and a floor never falls.
                await connection.execute(
                    update(conversations)
                    .where(conversations.c.id == conversation_id, conversations.c.floor_seq < floor)
                    .values(floor_seq=floor)
                )
                await connection.execute(
                    delete(events).where(events.c.conversation_id == conversation_id, events.c.seq <= floor)
                )
        async with self._database.transaction("housekeeping.purged") as connection:
            await connection.execute(
                update(conversations).where(conversations.c.id == conversation_id).values(message_count=_PURGED)
            )
