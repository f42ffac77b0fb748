"""What the audit log tells of: deeds, and who does them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Action = Literal[
    "agent.delete",
    "agent.put",
    "conversation.delete",
    "key.create",
    "key.revoke",
    "message.delete",
    "session.create",
    "session.end",
]

SYSTEM = "system"  # who does what nobody asked for, and what an operator does by a command


class Deed(Struct, frozen=True):
    """What a principal does to `subject`, which is an id."""

    principal: str
    action: Action
    subject: str
