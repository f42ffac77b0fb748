"""FastAPI on uvicorn (uvloop, httptools), SQLAlchemy's asynchronous ORM, pydantic, OFFSET: as its documentation teaches."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.peers.arguments import parse

_URL = "BENCH_DATABASE_URL"


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "peer_messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    conversation_id: Mapped[UUID]
    position: Mapped[int]
    role: Mapped[str]
    agent_id: Mapped[str | None]
    content: Mapped[str]
    status: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class MessageOut(BaseModel):
    model_config = ConfigDict(from_attributes=True, serialize_by_alias=True)

    id: UUID
    conversation_id: UUID
    position: int
    role: str
    agent_id: str | None
    content: str
    status: str
    data: dict[str, Any] = Field(serialization_alias="metadata")
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    items: list[MessageOut]


_engine = create_async_engine(
    os.environ.get(_URL, "postgresql://").replace("postgresql://", "postgresql+asyncpg://"), pool_size=10
)
_sessions = async_sessionmaker(_engine, expire_on_commit=False)


async def _session() -> AsyncIterator[AsyncSession]:
    async with _sessions() as session:
        yield session


app = FastAPI()


@app.get("/conversations/{conversation_id}/messages")
async def messages(
    conversation_id: UUID, session: Annotated[AsyncSession, Depends(_session)], limit: int = 50, offset: int = 0
) -> Page:
    rows = await session.scalars(
        select(Message)
        .where(Message.conversation_id == conversation_id)
        .order_by(Message.position.desc())
        .limit(limit)
        .offset(offset)
    )
    return Page(items=[MessageOut.model_validate(row) for row in rows])


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


def main() -> None:
    arguments = parse(__doc__)
    os.environ[_URL] = arguments.database_url
    uvicorn.run(
        "bench.peers.fastapi_app:app",
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        workers=arguments.workers,
    )


if __name__ == "__main__":
    main()
