"""The messages that are streaming now."""

from __future__ import annotations

from msgspec import Struct
from sqlalchemy import and_, select

from storage.database import Database
from storage.statement import Statement
from storage.tables import conversations, messages, streaming_messages

_streaming = streaming_messages.c
_ALL = Statement(
    "streaming.all",
    select(_streaming.tenant, _streaming.conversation_id, _streaming.message_id, _streaming.last_seq)
    .join(messages, and_(messages.c.tenant == _streaming.tenant, messages.c.id == _streaming.message_id))
    .join(conversations, conversations.c.id == _streaming.conversation_id)
    .where(messages.c.status == "streaming", conversations.c.deleted_at.is_(None)),
)


class StreamingMessage(Struct, frozen=True):
    """A message that streams, and the seq of its last event: it stands still for as long as that stays the same."""

    tenant: str
    conversation_id: str
    message_id: str
    last_seq: int


class StreamingMessages:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[StreamingMessage]:
        """Those of all tenants, but for deleted conversations."""
        return [StreamingMessage(*row) for row in await self._database.fetch(_ALL)]
