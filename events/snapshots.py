"""What is rendered from rows, because the events that made it are not at hand: states, for replays and for the feed."""

from __future__ import annotations

import msgspec

from events.vocabulary import CONVERSATION_UPDATED, MESSAGE_SNAPSHOT, encode_record, run_kind
from storage.records import Conversation, Message, Run

FEED_CONVERSATION = "feed.conversation"
FEED_CONVERSATION_DELETED = "feed.conversation.deleted"


def snapshot(record: Message | Run | Conversation) -> tuple[str, bytes]:
    """The kind and the payload of the event that tells a reader the whole state of `record`."""
    encoded = encode_record(record)
    if isinstance(record, Message):
        return MESSAGE_SNAPSHOT, b'{"message":%b}' % encoded
    if isinstance(record, Run):
        return run_kind(record.state), b'{"run":%b}' % encoded
    return CONVERSATION_UPDATED, b'{"conversation":%b}' % encoded


def feed_state(conversation: Conversation) -> tuple[str, bytes]:
    """The same for the feed, of which a conversation's own stream knows nothing."""
    return FEED_CONVERSATION, b'{"conversation":%b}' % encode_record(conversation)


def feed_deletion(conversation_id: str) -> tuple[str, bytes]:
    return FEED_CONVERSATION_DELETED, msgspec.json.encode({"conversation_id": conversation_id})
