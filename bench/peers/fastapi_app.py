"""The application as it would be begun today: FastAPI on uvicorn, SQLAlchemy's asynchronous ORM on asyncpg.

A session as a dependency and a pydantic model as the response, as FastAPI's documentation teaches. uvicorn runs on
uvloop and httptools, which `uvicorn[standard]` would bring and choose.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bench.peers import command
from bench.peers.orm import page, url_for


class MessageOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    conversation_id: UUID
    position: int
    role: str
    agent_id: str | None
    content: str
    status: str
    metadata: dict[str, Any] = Field(validation_alias="metadata_")
    created_at: datetime
    updated_at: datetime


class MessagePage(BaseModel):
    items: list[MessageOut]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Ten that stay: the default keeps five, and makes and drops a connection for each request beyond them.
    engine = create_async_engine(url_for("asyncpg", os.environ["DATABASE_URL"]), pool_size=10, max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


app = FastAPI(lifespan=lifespan)


@app.get("/conversations/{conversation_id}/messages", response_model=MessagePage)
async def messages(
    conversation_id: UUID,
    session: Annotated[AsyncSession, Depends(get_session)],
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Any:
    return {"items": (await session.scalars(page(conversation_id, limit, offset))).all()}


@app.get("/health")
async def health() -> None:
    return None


def main() -> None:
    parser = command.parser("fastapi_app", __doc__, database=True)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["DATABASE_URL"] = arguments.database_url  # workers are processes of their own, which import `app` anew
    uvicorn.run(
        "bench.peers.fastapi_app:app",
        host=command.HOST,
        port=arguments.port,
        workers=arguments.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
