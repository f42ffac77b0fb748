"""The tables. Migrations make them; `tests/storage` holds both against each other.

Every row carries its tenant. Rows of `messages`, `streaming_messages`, `events` and `runs` are only ever written while
their conversation's row is locked, which is what a foreign key would check again for each of them: they have none.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite has no such types: ids are text with dashes there, times RFC 3339 in UTC with six decimals, which sort as text.
Id = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Time = String(27).with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")

timeline = Table(
    "timeline",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False),  # always 1: the table has one row
    Column("epoch", Text, nullable=False),
)

# Written by `storage.migrate`, in the transaction of the migrations themselves.
compatibility = Table(
    "compatibility",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False),  # always 1
    Column("oldest_code", Text, nullable=False),  # a version must know this revision at least
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("title", Text),
    Column("metadata", Text, nullable=False),
    Column("message_count", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("floor_seq", BigInteger, nullable=False),  # events up to this seq are gone from the log
    Column("state_seq", BigInteger, nullable=False),  # the seq that last touched the conversation's own fields
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("last_activity_at", Time, nullable=False),
    Column("deleted_at", Time),
    # Each append updates its conversation's row: room on the page keeps those updates out of the indexes (HOT).
    postgresql_with={"fillfactor": 60},
)
Index(
    "ix_conversations_by_activity",
    conversations.c.tenant,
    conversations.c.last_activity_at,
    conversations.c.id,
    postgresql_where=conversations.c.deleted_at.is_(None),
    sqlite_where=conversations.c.deleted_at.is_(None),
)
Index(
    "ix_conversations_deleted_at",
    conversations.c.deleted_at,
    postgresql_where=conversations.c.deleted_at.is_not(None),
    sqlite_where=conversations.c.deleted_at.is_not(None),
)

messages = Table(
    "messages",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("conversation_id", Id, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("agent_id", Text),
    Column("run_id", Id),
    Column("content", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reply_to", Id),
    Column("model", Text),
    Column("tool_calls", Text, nullable=False),
    Column("usage", Text),
    Column("metadata", Text, nullable=False),
    Column("length", BigInteger),
    Column("sha256", Text),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    # The seq that last touched it, deltas aside: while it streams, its row in `streaming_messages` knows better.
    Column("last_seq", BigInteger, nullable=False),
    UniqueConstraint("conversation_id", "position"),
)
# Who replays the state reads what was touched after a seq.
Index("ix_messages_conversation_id_last_seq", messages.c.conversation_id, messages.c.last_seq)

# What is streaming now: a row appears with its message and goes when it is finished or deleted. A message's deltas are
# counted here and not in its own row, which is wide and indexed by its seq.
streaming_messages = Table(
    "streaming_messages",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("message_id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_seq", BigInteger, nullable=False),  # retention stops below it: the text is in the events since
    Column("last_seq", BigInteger, nullable=False),  # the seq of its last event: the version that a finish expects
    Column("length", BigInteger, nullable=False),  # of its deltas so far, in UTF-16 code units
    # Each delta updates it: room on the page keeps those updates out of the index (HOT).
    postgresql_with={"fillfactor": 50},
)

events = Table(
    "events",
    metadata,
    Column("conversation_id", Id, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message_id", Id),
    Column("payload", Text, nullable=False),  # the event's JSON as it was, without conversation_id and seq
    Column("at", Time),  # when it was appended; null where a version did that which did not keep it
)
# Deleting a message turns its earlier events into tombstones; a streaming one's text is in its events.
Index(
    "ix_events_message_id",
    events.c.message_id,
    postgresql_where=events.c.message_id.is_not(None),
    sqlite_where=events.c.message_id.is_not(None),
)

runs = Table(
    "runs",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("conversation_id", Id, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("message_id", Id),
    Column("attempt", Integer, nullable=False),
    Column("error", Text),
    Column("created_at", Time, nullable=False),
    Column("started_at", Time),
    Column("ended_at", Time),
    Column("last_seq", BigInteger, nullable=False),  # the seq that last touched it
)
Index("ix_runs_conversation_id_last_seq", runs.c.conversation_id, runs.c.last_seq)

agents = Table(
    "agents",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("hidden", Boolean, nullable=False),
    Column("document", Text, nullable=False, server_default=text("'{}'")),
    Column("updated_at", Time, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("principal", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", Text, nullable=False),  # a template: see storage.append
    Column("seq", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    # An import under a key: how many lines are stored, their running hash, and the last position so far.
    Column("lines", BigInteger),
    Column("running_hash", Text),
    Column("last_position", BigInteger),
    Column("created_at", Time, nullable=False),
)
Index("ix_idempotency_keys_created_at", idempotency_keys.c.created_at)

# API keys, sessions of browsers, and tickets. What is kept is the digest of the secret, never the secret.
credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("principal", Text, nullable=False),  # who it speaks for, unique within the tenant
    Column("scopes", Text, nullable=False),  # separated by blanks
    Column("digest", Text, nullable=False),  # SHA-256 in lower hex
    Column("name", Text, nullable=False),
    Column("root", Text, nullable=False),  # the key that it came from in the end: with that one it is revoked
    Column("parent", Text),  # the credential that it was given for
    Column("conversations", Text),  # of a ticket: what it opens, as JSON
    Column("feed", Boolean, nullable=False),  # of a ticket: whether it opens the feed
    Column("created_by", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time),
    Column("ends_at", Time),  # of a session, which slides: no later than that
    Column("revoked_at", Time),
)
Index("ix_credentials_root", credentials.c.root)
Index("ix_credentials_parent", credentials.c.parent)
Index("ix_credentials_tenant_kind_id", credentials.c.tenant, credentials.c.kind, credentials.c.id)

audit = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True),  # they sort by time
    Column("at", Time, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
)
