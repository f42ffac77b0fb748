"""An import's batches: what is committed, in which order, and what stands under its key."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from events.conversation_log import Batch, ConversationLog, Draft, Prepared, prepare
from handlers.kinds import INVALID, KEY_REUSED, REQUEST_TIMEOUT
from handlers.problem import Fault, Problem, as_problem
from storage.append import ImportProgress, Moved, NewMessage, WriteKey
from storage.errors import UnknownAgent, UnknownReply
from storage.records import now

# A batch is one transaction. While it is committed the next one is sent behind it, and a third one is read: these are
# all of an import in memory.
_BATCH_LINES = 500
_BATCH_BYTES = 1024 * 1024
_UNDER_WAY = 2
# What comes slowly is committed with what came in this time (seconds), for it is as of its batch's first line.
_BATCH_SECONDS = 1.0
# The loop turns this often until a batch is on its way: the task begins, queues it, and a committer takes it. Further
# lines are parsed after that, while the database is at work.
_TURNS = 3


@dataclass(slots=True)
class _Line:
    number: int  # in the body, from 1
    count: int  # without the blank ones
    message: Prepared
    digest: str  # the running hash with this line, when the import has a key


@dataclass(slots=True)
class ImportBatches:
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
    at: datetime = field(default_factory=now)  # that of the batch's messages
    since: float = 0.0  # the same by the monotonic clock
    batch: list[_Line] = field(default_factory=list)
    size: int = 0
    last_id: str = ""  # of the batch that began to be committed last: its last message
    under_way: deque[asyncio.Task[None]] = field(default_factory=deque)  # batches, the first one first

    def add(self, number: int, count: int, draft: Draft, digest: str, size: int) -> None:
        """One more line for the batch: made ready here, so that the next commit has nothing more to wait for."""
        if not self.batch:
            self.at, self.since = now(), time.monotonic()
        self.batch.append(_Line(number, count, prepare(self.conversation_id, draft, self.at, len(self.batch)), digest))
        self.size += size

    @property
    def full(self) -> bool:
        return len(self.batch) >= _BATCH_LINES or self.size >= _BATCH_BYTES

    @property
    def stale(self) -> bool:
        """What is in the batch has waited long enough."""
        return bool(self.batch) and time.monotonic() - self.since >= _BATCH_SECONDS

    def already(self, moved: Moved) -> None:
        """Takes over what another attempt has stored."""
        self.known = moved
        self.stored, self.as_of = moved.lines, moved.seq
        self.first_position, self.last_position = moved.position, moved.last_position

    async def flush(self) -> None:
        """Begins to commit the batch, if there is any, behind those under way. Raises what the first has met."""
        await self.settle(_UNDER_WAY - 1)
        if not self.batch:
            return
        batch, self.batch, self.size = self.batch, [], 0
        before = self.under_way[-1] if self.under_way else None
        committing = (
            self._commit(batch, self.at) if before is None else self._follow(before, batch, self.at, self.last_id)
        )
        self.under_way.append(asyncio.create_task(committing, name="import"))
        self.last_id = batch[-1].message.row.id
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Commits what there is. Raises 422 with the line, after storing what comes before it."""
        await self.flush()
        await self.settle(0)

    async def settle(self, most: int) -> None:
        """Waits until at most so many batches are under way. Raises what the first one has met."""
        while len(self.under_way) > most:
            await self.under_way[0]
            self.under_way.popleft()

    async def abandon(self) -> None:
        """Nobody waits any more. What is queued is committed all the same."""
        for committing in self.under_way:
            committing.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    async def _follow(self, before: asyncio.Task[None], batch: list[_Line], at: datetime, last_id: str) -> None:
        """Commits the batch behind the one `before`, whose outcome is still to come.

        The database takes it only where that one's last message is. Where it does not, the batch begins again when the
        outcome of the other is known.
        """
        try:
            outcome = await self._post(batch, at, batch[0].count - 1, follows=last_id)
        except (UnknownAgent, UnknownReply):
            outcome = None
        await before
        if isinstance(outcome, Batch):
            self._stored(outcome, len(batch))
        else:
            await self._commit(batch, at)

    async def _commit(self, batch: list[_Line], at: datetime) -> None:
        bad: _Line | None = None
        refusal: Problem | None = None
        while batch:
            try:
                await self._store(batch, at)
            except (UnknownAgent, UnknownReply) as error:
                # It need not be the first of those that are refused; and what comes before it may be there by now.
                bad = next(line for line in batch if _names(line.message.row, error))
                refusal = as_problem(error)
                batch = batch[: batch.index(bad)]
            else:
                break
        if bad is not None:
            assert refusal is not None
            raise refused(bad.number, self.stored, refusal)

    async def _store(self, lines: list[_Line], at: datetime) -> None:
        while lines := self._unstored(lines):
            outcome = await self._post(lines, at, self.stored)
            if isinstance(outcome, Batch):
                self._stored(outcome, len(lines))
                return
            # Another request imports the same lines under the same key: what it has stored is not stored again.
            if outcome.lines <= self.stored:
                raise changed()
            self.already(outcome)

    async def _post(
        self, lines: list[_Line], at: datetime, stored: int, *, follows: str | None = None
    ) -> Batch | Moved:
        """`stored` is how many lines are in the database when these come to it."""
        progress = None
        if self.key is not None:
            progress = ImportProgress(stored, stored + len(lines), lines[-1].digest)
        return await self.log.post_batch(
            self.tenant,
            self.conversation_id,
            [line.message for line in lines],
            at,
            key=self.key,
            progress=progress,
            follows=follows,
        )

    def _stored(self, batch: Batch, count: int) -> None:
        self.stored += count
        self.first_position = self.first_position or batch.first_position
        self.last_position, self.as_of = batch.last_position, batch.as_of

    def _unstored(self, lines: list[_Line]) -> list[_Line]:
        """Those of these lines that are not in the database. Raises 422 when another attempt has stored others."""
        ahead = self.stored + 1 - lines[0].count
        if 0 < ahead <= len(lines):
            assert self.known is not None
            if self.known.lines == self.stored and lines[ahead - 1].digest != self.known.running_hash:
                raise changed()
        return lines[max(ahead, 0) :]


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


def _names(message: NewMessage, error: UnknownAgent | UnknownReply) -> bool:
    if isinstance(error, UnknownAgent):
        return message.agent_id == error.agent_id
    return message.reply_to == error.message_id


def changed() -> Problem:
    """What stands under the key is of other lines."""
    return Problem(
        KEY_REUSED,
        "Other lines than these are stored under this idempotency key.",
        [Fault("was used before for other lines", header="Idempotency-Key")],
    )
