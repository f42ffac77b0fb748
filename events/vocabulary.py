"""The events of a conversation, and their payloads as they are stored and sent.

A payload is made once, when the event happens, and never again from its row. Those of new messages and of conversations
are templates (see `storage.append`): their numbers are known only inside the transaction.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from storage.append import POSITION, SEQ, NewEvent, NewMessage
from storage.records import Conversation, Message

MESSAGE_CREATED = "message.created"
MESSAGE_UPDATED = "message.updated"
MESSAGE_DELETED = "message.deleted"
CONVERSATION_UPDATED = "conversation.updated"
CONVERSATION_DELETED = "conversation.deleted"

OPEN_POSITION = Raw(POSITION)  # a message's position, or a conversation's count of messages
OPEN_SEQ = Raw(SEQ)

_encode = msgspec.json.Encoder().encode


def encode_record(record: Message | Conversation) -> bytes:
    return _encode(record)


def message_event(kind: str, message_id: str, encoded: bytes, rank: int = 0) -> NewEvent:
    """An event about one message, whole: a reader sets the message at its position, nothing else."""
    return NewEvent(kind, message_id, b'{"message":%b}' % encoded, rank)


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
