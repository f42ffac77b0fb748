"""The application that Swarm replaces: Flask, SQLAlchemy's ORM on psycopg, and gunicorn's sync workers.

Pages by LIMIT and OFFSET, objects made into dictionaries, `jsonify`: what Flask's tutorial leads to. The program
becomes gunicorn; its pid is the master's, the workers are its children.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from uuid import UUID

from flask import Flask, Response, jsonify, request
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from bench.peers import command
from bench.peers.orm import PeerMessage, page, url_for


def create_app() -> Flask:
    app = Flask(__name__)
    sessions = sessionmaker(create_engine(url_for("psycopg", os.environ["DATABASE_URL"])))

    @app.get("/conversations/<uuid:conversation_id>/messages")
    def messages(conversation_id: UUID) -> Response:
        limit = request.args.get("limit", 50, type=int)
        offset = request.args.get("offset", 0, type=int)
        with sessions() as session:
            found = session.scalars(page(conversation_id, limit, offset)).all()
            return jsonify({"items": [_as_dict(message) for message in found]})

    @app.get("/health")
    def health() -> str:
        return ""

    return app


def _as_dict(message: PeerMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "conversation_id": message.conversation_id,
        "position": message.position,
        "role": message.role,
        "agent_id": message.agent_id,
        "content": message.content,
        "status": message.status,
        "metadata": message.metadata_,
        "created_at": message.created_at.isoformat(),
        "updated_at": message.updated_at.isoformat(),
    }


def main() -> None:
    parser = command.parser("flask_app", __doc__, database=True)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["DATABASE_URL"] = arguments.database_url
    os.execv(  # noqa: S606
        sys.executable,
        [
            *(sys.executable, "-m", "gunicorn"),
            *("--bind", f"{command.HOST}:{arguments.port}"),
            *("--workers", str(arguments.workers)),
            *("--worker-class", "sync"),
            *("--log-level", "warning"),
            "bench.peers.flask_app:create_app()",
        ],
    )


if __name__ == "__main__":
    main()
