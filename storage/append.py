"""What one append asks for, and what can become of it.

An append changes one conversation, all or nothing. What it will be told only inside the transaction, its seqs and
positions, it leaves open in templates: JSON texts with two control characters in them, which JSON itself never holds.

- `SEQ` stands for the seq of the event that the template belongs to (in an answer: of the first event);
- `POSITION` for the position of the event's message, and in an answer, which may hold many messages, the n-th one
  stands for the n-th message's.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime

from msgspec import Struct

from storage.deed import Deed

SEQ = b"\x01"
POSITION = b"\x02"


class WriteKey(Struct, frozen=True):
    """An `Idempotency-Key` in its scope. `fingerprint` tells whether the request is the same one."""

    principal: str
    route: str
    key: str
    fingerprint: str


class ImportProgress(Struct, frozen=True):
    """What an import's batch leaves under its key: this many lines are stored, and this is their running hash."""

    lines_before: int
    lines: int
    running_hash: str


class NewMessage(Struct, frozen=True):
    """A message's row, without what its conversation gives it. JSON columns are text.

    One with the status `streaming` has no content, length and sha256 yet: its text follows as `Delta`s.
    """

    id: str
    role: str
    agent_id: str | None
    content: str
    status: str
    reply_to: str | None
    model: str | None
    tool_calls: str
    usage: str | None
    metadata: str
    length: int | None
    sha256: str | None


class NewEvent(Struct, frozen=True):
    """`payload` is a template. `rank` tells which of the append's messages, from 0, `POSITION` stands for."""

    kind: str
    message_id: str | None
    payload: bytes
    rank: int = 0


class Delta(Struct, frozen=True):
    """More text for a streaming message that has `offset` UTF-16 code units so far: `units` of them.

    The text itself is in the append's one event, a `message.delta` of this message: its payload's member `text`.
    """

    message_id: str
    offset: int
    units: int


class MessageChange(Struct, frozen=True):
    """New contents for a message that nobody has touched since seq `expected`, its deltas included.

    With the status `streaming` the message goes on streaming, and its text stays what its deltas say: `content` is not
    looked at. Its `updated_at` stays, too: no event of a tool says another. With any other status the stream has ended.
    With a `tombstone`, that payload takes the place of every earlier event of the message, its deltas included: it is
    being deleted.
    """

    message_id: str
    expected: int
    content: str
    status: str
    model: str | None
    tool_calls: str
    usage: str | None
    metadata: str
    length: int | None
    sha256: str | None
    tombstone: str | None = None


class ConversationChange(Struct, frozen=True):
    """New fields for a conversation whose own fields nobody has touched since seq `expected`, or its deletion."""

    expected: int
    title: str | None
    metadata: str
    deleted: bool = False


class RunState(Struct, frozen=True):
    """A run as it is from now on, new or not. Its conversation is the append's."""

    id: str
    agent_id: str
    state: str
    message_id: str | None
    attempt: int
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Append(Struct, frozen=True, eq=False):
    """One client's write. `events` is never empty; `messages[i]` was created by the event whose `rank` is i.

    Its first event is the one that touches what it changes: a message, a run, the conversation's own fields. With a
    `delta` there is no other.
    """

    tenant: str
    conversation_id: str
    at: datetime
    events: list[NewEvent]
    answer: bytes
    status: int
    messages: list[NewMessage] = []
    key: WriteKey | None = None
    progress: ImportProgress | None = None
    change: MessageChange | None = None
    conversation: ConversationChange | None = None
    delta: Delta | None = None
    run: RunState | None = None
    shipped_agents: frozenset[str] = frozenset()
    deed: Deed | None = None  # what the audit log is to tell of it
    follows: str | None = None  # a message that must be there before it, and that may be on its way itself

    @property
    def rows(self) -> int:
        return len(self.events) + len(self.messages)

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        size = 200 + len(self.answer)
        for event in self.events:
            size += len(event.payload) * 2 + 100
        return size

    @property
    def agent_ids(self) -> list[str]:
        """The agents that its messages name."""
        return sorted({message.agent_id for message in self.messages if message.agent_id is not None})

    @property
    def reply_ids(self) -> list[str]:
        """The messages that must be there: those that its messages answer, and the one that it follows."""
        needed = {message.reply_to for message in self.messages if message.reply_to is not None}
        if self.follows is not None:
            needed.add(self.follows)
        return sorted(needed)

    @property
    def changes_rows(self) -> bool:
        """Whether it changes what is there, and so must find what came before it written."""
        return self.change is not None or self.delta is not None

    @property
    def claims(self) -> list[object]:
        """What no other append of the same transaction may touch: the checks look at what was committed before."""
        claims: list[object] = []
        if self.key is not None:
            claims.append((self.tenant, self.key.principal, self.key.route, self.key.key))
        if self.change is not None:
            claims.append(self.change.message_id)
        if self.delta is not None:
            claims.append(self.delta.message_id)
        if self.run is not None:
            claims.append(self.run.id)
        return claims


class Committed(Struct, frozen=True):
    """The append is durable: its events have the seqs from `seq`, its messages the positions from `position`.

    The seqs are of the timeline `epoch`, which may not be the one that this process knows: a backup may have been
    restored meanwhile.
    """

    seq: int
    position: int
    epoch: str


class Seen(Struct, frozen=True):
    """Its key was used by the same request before: nothing was written, and this was the answer."""

    status: int
    answer: bytes
    seq: int
    position: int


class Moved(Struct, frozen=True):
    """An import's batch came to a key whose progress is another: this much is stored."""

    lines: int
    running_hash: str
    seq: int
    position: int
    last_position: int


class Stale(Struct, frozen=True):
    """What it wanted to change has been changed since it was read."""


class Again(Struct, frozen=True):
    """Another transaction was in the way; the same append may be tried at once."""


class Busy(Struct, frozen=True):
    """Its conversation is locked by another transaction, for which an impatient group does not wait."""


class Refused(Struct, frozen=True):
    """It must not be.

    `reason` is `missing`, `key_reused`, `unknown_agent` or `unknown_reply`, `detail` the id in question.
    """

    reason: str
    detail: str = ""


Outcome = Committed | Seen | Moved | Stale | Again | Busy | Refused


class Waiting:
    """An append in the queue, with the future on which its client waits.

    `deadline` is in the loop's time. Once it is `withdrawn` its client has been told so: it must not be committed.
    """

    __slots__ = ("append", "claims", "deadline", "outcome", "rows", "size", "withdrawn")

    def __init__(self, append: Append, outcome: asyncio.Future[Outcome], deadline: float) -> None:
        self.append = append
        self.outcome = outcome
        self.deadline = deadline
        self.withdrawn = False
        # Asked for more than once on its way.
        self.rows = append.rows
        self.size = append.size
        self.claims = append.claims


def fill(template: bytes, seq: int, position: int) -> bytes:
    """An event's template with its numbers."""
    return template.replace(SEQ, b"%d" % seq).replace(POSITION, b"%d" % position)


def filled_with(template: bytes, seq: int, payload: bytes) -> int | None:
    """The position with which this template became `payload`, or None where it did not."""
    pattern = re.escape(template).replace(SEQ, b"%d" % seq).replace(POSITION, rb"(\d+)", 1)
    found = re.fullmatch(pattern, payload, re.DOTALL)
    return None if found is None else int(found[1])


def fill_answer(template: bytes, seq: int, position: int) -> bytes:
    """An answer's template: each `POSITION` in it is one more than the one before."""
    parts = template.replace(SEQ, b"%d" % seq).split(POSITION)
    filled = [parts[0]]
    for offset, part in enumerate(parts[1:]):
        filled.append(b"%d" % (position + offset))
        filled.append(part)
    return b"".join(filled)
