"""The events of a conversation, and their payloads as they are stored and sent.

A payload is made once, when the event happens, and never again from its row. Those of new messages and of conversations
are templates (see `storage.append`): their numbers are known only inside the transaction.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from storage.append import POSITION, SEQ, NewEvent, NewMessage
from storage.records import Conversation, Message, Run

MESSAGE_CREATED = "message.created"
MESSAGE_DELTA = "message.delta"
MESSAGE_COMPLETED = "message.completed"
MESSAGE_FAILED = "message.failed"
MESSAGE_CANCELLED = "message.cancelled"
MESSAGE_UPDATED = "message.updated"
MESSAGE_DELETED = "message.deleted"
MESSAGE_SNAPSHOT = "message.snapshot"  # in a state replay alone: it is in no log
RUN_STARTED = "run.started"
RUN_FINISHED = "run.finished"
RUN_FAILED = "run.failed"
RUN_CANCELLED = "run.cancelled"
TOOL_CALLED = "tool.called"
TOOL_RETURNED = "tool.returned"
CONVERSATION_UPDATED = "conversation.updated"
CONVERSATION_DELETED = "conversation.deleted"

OPEN_POSITION = Raw(POSITION)  # a message's position, or a conversation's count of messages
OPEN_SEQ = Raw(SEQ)

# What the end of a streamed message is called, by the status that it has then.
FINISHED = {"complete": MESSAGE_COMPLETED, "failed": MESSAGE_FAILED, "cancelled": MESSAGE_CANCELLED}

_RUN_KINDS = {
    "running": RUN_STARTED,
    "succeeded": RUN_FINISHED,
    "failed": RUN_FAILED,
    "cancelled": RUN_CANCELLED,
}

_encode = msgspec.json.Encoder().encode


class _Delta(Struct, frozen=True):
    message_id: str
    position: int
    offset: int
    text: str


class _ToolCall(Struct, frozen=True):
    run_id: str | None
    message_id: str
    tool_call: Raw


def encode_record(record: Message | Conversation | Run) -> bytes:
    return _encode(record)


def run_kind(state: str) -> str:
    """What it is called when a run comes to this state, which is not `queued`: nothing has happened then."""
    return _RUN_KINDS[state]


def message_event(kind: str, message_id: str, encoded: bytes, rank: int = 0) -> NewEvent:
    """An event about one message, whole: a reader sets the message at its position, nothing else."""
    return NewEvent(kind, message_id, b'{"message":%b}' % encoded, rank)


def delta_event(message_id: str, position: int, offset: int, text: str) -> NewEvent:
    """More of a streaming message's text: a reader appends it. `offset` counts UTF-16 code units."""
    return NewEvent(MESSAGE_DELTA, message_id, _encode(_Delta(message_id, position, offset, text)))


def run_event(run: Run) -> NewEvent:
    """A run as it is now, whole."""
    return NewEvent(run_kind(run.state), None, b'{"run":%b}' % encode_record(run))


def tool_event(kind: str, run_id: str | None, message_id: str, tool_call: bytes) -> NewEvent:
    """One call of a tool, whole, which is in its message's `tool_calls`."""
    return NewEvent(kind, message_id, _encode(_ToolCall(run_id, message_id, Raw(tool_call))))


def conversation_event(kind: str, encoded: bytes) -> NewEvent:
    # POSITION is the count of messages, and so the position before the one that a new message would get.
    return NewEvent(kind, None, b'{"conversation":%b}' % encoded, -1)


def message_row(message: Message) -> NewMessage:
    return NewMessage(
        message.id,
        message.role,
        message.agent_id,
        message.content,
        message.status,
        message.reply_to,
        message.model,
        bytes(message.tool_calls).decode(),
        None if message.usage is None else bytes(message.usage).decode(),
        bytes(message.metadata).decode(),
        message.length,
        message.sha256,
    )
