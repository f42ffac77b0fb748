"""The import of messages as NDJSON: any length, in bounded memory, committed in batches.

With an `Idempotency-Key` each batch leaves the number of lines that are stored and their running hash, in its own
transaction: the same lines sent again are skipped up to there, and the import goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from msgspec import Struct

from events.conversation_log import Batch, ConversationLog, Draft
from handlers.deadline import in_time
from handlers.drafts import POSTED_MESSAGE, draft
from handlers.json_body import decode
from handlers.kinds import INVALID, KEY_REUSED, REQUEST_TIMEOUT
from handlers.problem import Fault, Problem, as_problem, invalid
from handlers.requests import PostedMessages
from handlers.resources import CONVERSATIONS, KEYS, LOG, REQUESTS
from handlers.route import Call, Reply
from storage.append import ImportProgress, Moved, WriteKey
from storage.errors import UnknownAgent, UnknownReply

# A batch is one transaction, and all of an import that is in memory.
_BATCH_LINES = 500
_BATCH_BYTES = 1024 * 1024
# A line holds one message: its text in the longest way to write it in JSON, and the rest.
_LINE_BYTES = 8 * 1024 * 1024
# Lines are parsed in this many at a time, so that streams are not kept waiting.
_PARSE_LINES = 64


class ImportResult(Struct, frozen=True):
    """What an import stored. `accepted` counts lines, those of earlier attempts under the same key too."""

    accepted: int
    first_position: int | None
    last_position: int | None
    as_of: int


@dataclass(slots=True)
class _Line:
    number: int  # in the body, from 1
    draft: Draft
    digest: str  # the running hash with this line, when the import has a key
    size: int


@dataclass(slots=True)
class _Import:
    """One import under way. `stored` counts the lines in the database.

    `known` is how far another attempt under the same key has been found to be: this one skips what is there.
    """

    log: ConversationLog
    tenant: str
    conversation_id: str
    key: WriteKey | None
    known: Moved | None = None
    stored: int = 0
    first_position: int | None = None
    last_position: int | None = None
    as_of: int = 0
    batch: list[_Line] = field(default_factory=list)
    size: int = 0

    def add(self, line: _Line) -> None:
        self.batch.append(line)
        self.size += line.size

    @property
    def full(self) -> bool:
        return len(self.batch) >= _BATCH_LINES or self.size >= _BATCH_BYTES

    def already(self, moved: Moved) -> None:
        """Takes over what another attempt has stored."""
        self.known = moved
        self.stored, self.as_of = moved.lines, moved.seq
        self.first_position, self.last_position = moved.position, moved.last_position

    async def flush(self) -> None:
        """Commits the batch. Raises 422 with the line, after storing what comes before it."""
        batch, self.batch, self.size = self.batch, [], 0
        bad: _Line | None = None
        refusal: Problem | None = None
        while batch:
            start = self.stored
            try:
                await self._store(batch)
            except (UnknownAgent, UnknownReply) as error:
                # It need not be the first of those that are refused; and what comes before it may be there by now.
                bad = next(line for line in batch if _names(line.draft, error))
                refusal = as_problem(error)
                batch = batch[self.stored - start : batch.index(bad)]
            else:
                break
        if bad is not None:
            assert refusal is not None
            raise refused(bad.number, self.stored, refusal)

    async def _store(self, lines: list[_Line]) -> None:
        while lines:
            progress = None
            if self.key is not None:
                progress = ImportProgress(self.stored, self.stored + len(lines), lines[-1].digest)
            outcome = await self.log.post_batch(
                self.tenant,
                self.conversation_id,
                [line.draft for line in lines],
                key=self.key,
                progress=progress,
            )
            if isinstance(outcome, Batch):
                self.stored += len(lines)
                self.first_position = self.first_position or outcome.first_position
                self.last_position, self.as_of = outcome.last_position, outcome.as_of
                return
            # Another request imports the same lines under the same key: what it has stored is not stored again.
            ahead = outcome.lines - self.stored
            if ahead <= 0 or (ahead <= len(lines) and lines[ahead - 1].digest != outcome.running_hash):
                raise _changed()
            self.already(outcome)
            lines = lines[ahead:]


async def import_messages(call: Call[None, PostedMessages]) -> Reply:
    """200 with what was stored, or 422 with `line` and `accepted`: the lines before that one are stored.

    408 with the same, when that line does not come.
    """
    conversation_id = call.params["conversation_id"]
    conversation = await call.resource(CONVERSATIONS).get(call.tenant, conversation_id)
    assert isinstance(conversation.as_of, int)  # a template's is open, a stored one's is not
    doing = _Import(call.resource(LOG), call.tenant, conversation_id, call.key, as_of=conversation.as_of)
    known = None if call.key is None else await call.resource(KEYS).progress(call.tenant, call.key)
    if known is not None:
        doing.already(known)
    limits = call.resource(REQUESTS)
    running = hashlib.sha256()
    count = 0
    async for number, text in _lines(call):
        count += 1
        if call.key is not None and isinstance(text, bytes):
            running.update(text)
            running.update(b"\n")
        known = doing.known
        if known is not None and count <= known.lines and isinstance(text, bytes):
            if count == known.lines and running.hexdigest() != known.running_hash:
                raise _changed()
            continue
        try:
            if isinstance(text, Problem):
                raise text
            posted = decode(text, POSTED_MESSAGE)
            if posted.status == "streaming":  # nobody is told its id, so nobody could send its text
                raise invalid(Fault("must be complete in an import", pointer="/status"))
            parsed = draft(posted, limits)
        except Problem as problem:
            if doing.batch:
                await doing.flush()
            raise refused(number, doing.stored, problem) from None
        doing.add(_Line(number, parsed, running.hexdigest() if call.key is not None else "", len(text)))
        if doing.full:
            await doing.flush()
        elif count % _PARSE_LINES == 0:
            await asyncio.sleep(0)
    if doing.batch:
        await doing.flush()
    if doing.known is not None and count < doing.known.lines:
        raise _changed()
    return Reply(ImportResult(doing.stored, doing.first_position, doing.last_position, doing.as_of), 200)


async def _lines(call: Call[None, PostedMessages]) -> AsyncIterator[tuple[int, bytes | Problem]]:
    """The body's lines with their numbers, without blank ones. The last need not end with a line break.

    In the place of a line that is too long to be held, or that does not come in time, is what is wrong with it; nothing
    comes after it. Only the time spent waiting for the client counts, from one line to the next.
    """
    limit = left = call.resource(REQUESTS).body_timeout
    clock = asyncio.get_running_loop().time
    number = 0
    rest = bytearray()
    while True:
        asked = clock()
        try:
            data = await in_time(call.request, left, call.request.content.readany())
        except Problem as late:
            yield number + 1, late
            return
        if not data:
            break
        left -= clock() - asked
        rest += data
        if b"\n" not in data:  # a line that comes in many pieces is not copied with each of them
            whole = []
        else:
            *whole, rest = rest.split(b"\n")
        for line in whole:
            number += 1
            if text := line.strip(b" \t\r"):
                left = limit
                yield number, bytes(text)
        if len(rest) > _LINE_BYTES:
            yield number + 1, invalid(Fault(f"is longer than {_LINE_BYTES} bytes", pointer=""))
            return
    if text := rest.strip(b" \t\r"):
        yield number + 1, bytes(text)


def refused(line: int, accepted: int, problem: Problem) -> Problem:
    """The problem of one line, as the import's answer."""
    faults = problem.errors
    detail = faults[0].detail if faults and faults[0].pointer == "" else problem.detail  # no more of "the body"
    return Problem(
        problem.kind if problem.kind is REQUEST_TIMEOUT else INVALID,
        f"Line {line}: {detail}",
        problem.errors,
        members={"line": line, "accepted": accepted},
    )


def _names(posted: Draft, error: UnknownAgent | UnknownReply) -> bool:
    if isinstance(error, UnknownAgent):
        return posted.agent_id == error.agent_id
    return posted.reply_to == error.message_id


def _changed() -> Problem:
    return Problem(
        KEY_REUSED,
        "Other lines than these are stored under this idempotency key.",
        [Fault("was used before for other lines", header="Idempotency-Key")],
    )
