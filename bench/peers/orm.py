"""The models of the two ORM peers, as SQLAlchemy 2's documentation writes them, and the one query they have."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, ForeignKey, Select, Text, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own way)
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


class PeerConversation(Base):
    __tablename__ = "peer_conversations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    # `metadata` is a name that SQLAlchemy keeps for itself.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class PeerMessage(Base):
    __tablename__ = "peer_messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    conversation_id: Mapped[UUID] = mapped_column(ForeignKey("peer_conversations.id"))
    position: Mapped[int] = mapped_column(BigInteger)
    role: Mapped[str]
    agent_id: Mapped[str | None]
    content: Mapped[str]
    status: Mapped[str]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


def page(conversation_id: UUID, limit: int, offset: int) -> Select[PeerMessage]:
    """Newest first. No total: COUNT would cost more than the page itself, and a list that scrolls needs none."""
    return (
        select(PeerMessage)
        .where(PeerMessage.conversation_id == conversation_id)
        .order_by(PeerMessage.position.desc())
        .limit(limit)
        .offset(offset)
    )


def url_for(driver: str, database_url: str) -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://", 1)
