"""The import of messages as NDJSON: any length, in bounded memory, committed in batches.

With an `Idempotency-Key` each batch leaves the number of lines that are stored and their running hash, in its own
transaction: the same lines sent again are skipped up to there, and the import goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from msgspec import Struct

from handlers.deadline import in_time
from handlers.drafts import POSTED_MESSAGE, draft
from handlers.import_batches import ImportBatches, changed, refused
from handlers.json_body import decode
from handlers.problem import Fault, Problem, invalid
from handlers.requests import PostedMessages
from handlers.resources import CONVERSATIONS, KEYS, LOG, REQUESTS
from handlers.route import Call, Reply

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


async def import_messages(call: Call[None, PostedMessages]) -> Reply:
    """200 with what was stored, or 422 with `line` and `accepted`: the lines before that one are stored.

    408 with the same, when that line does not come.
    """
    conversation_id = call.params["conversation_id"]
    conversation = await call.resource(CONVERSATIONS).get(call.tenant, conversation_id)
    assert isinstance(conversation.as_of, int)  # a template's is open, a stored one's is not
    doing = ImportBatches(call.resource(LOG), call.tenant, conversation_id, call.key, as_of=conversation.as_of)
    known = None if call.key is None else await call.resource(KEYS).progress(call.tenant, call.key)
    if known is not None:
        doing.already(known)
    try:
        await _import(call, doing)
    finally:
        await doing.abandon()
    return Reply(ImportResult(doing.stored, doing.first_position, doing.last_position, doing.as_of), 200)


async def _import(call: Call[None, PostedMessages], doing: ImportBatches) -> None:
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
                raise changed()
            continue
        try:
            if isinstance(text, Problem):
                raise text
            posted = decode(text, POSTED_MESSAGE)
            if posted.status == "streaming":  # nobody is told its id, so nobody could send its text
                raise invalid(Fault("must be complete in an import", pointer="/status"))
            parsed = draft(posted, limits)
        except Problem as problem:
            await doing.finish()
            raise refused(number, doing.stored, problem) from None
        if doing.stale:
            await doing.flush()
        doing.add(number, count, parsed, running.hexdigest() if call.key is not None else "", len(text))
        if doing.full:
            await doing.flush()
        elif count % _PARSE_LINES == 0:
            await asyncio.sleep(0)
    await doing.finish()
    if doing.known is not None and count < doing.known.lines:
        raise changed()


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
