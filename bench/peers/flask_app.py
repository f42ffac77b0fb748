"""What Swarm replaces: Flask under gunicorn's synchronous workers, SQLAlchemy's ORM, `jsonify`, OFFSET."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any
from uuid import UUID

from flask import Flask, Response, jsonify, request
from sqlalchemy import create_engine, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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
    # The column of that name; the attribute has another, which SQLAlchemy's declarative classes have taken.
    data: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "conversation_id": str(self.conversation_id),
            "position": self.position,
            "role": self.role,
            "agent_id": self.agent_id,
            "content": self.content,
            "status": self.status,
            "metadata": self.data,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
        }


def create_app() -> Flask:
    app = Flask(__name__)
    engine = create_engine(os.environ[_URL].replace("postgresql://", "postgresql+psycopg://"), pool_size=5)

    @app.get("/conversations/<uuid:conversation_id>/messages")
    def messages(conversation_id: UUID) -> Response:
        limit, offset = request.args.get("limit", 50, int), request.args.get("offset", 0, int)
        with Session(engine) as session:
            rows = session.scalars(
                select(Message)
                .where(Message.conversation_id == conversation_id)
                .order_by(Message.position.desc())
                .limit(limit)
                .offset(offset)
            )
            return jsonify({"items": [message.to_dict() for message in rows]})

    @app.get("/health")
    def health() -> Response:
        return jsonify({"status": "healthy"})

    return app


def main() -> None:
    arguments = parse(__doc__)
    os.environ[_URL] = arguments.database_url
    command = [sys.executable, "-m", "gunicorn", "--workers", str(arguments.workers), "--log-level", "error"]
    command += ["--bind", f"127.0.0.1:{arguments.port}", "--backlog", "2048", "bench.peers.flask_app:create_app()"]
    os.execv(sys.executable, command)  # noqa: S606 (it becomes the server)


if __name__ == "__main__":
    main()
