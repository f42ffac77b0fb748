"""The queue of appends, and the tasks that commit what waits in it together.

No timer: an idle process commits an append at once; a busy one finds many waiting each time a commit has ended. But the
deltas of a conversation in which several write at once rest for a moment after those before them: their readers get
them together, and so they are committed together.

A conversation is in one group at a time, so its appends keep their order; several groups of different conversations may
be in flight. Only an append that says which message it follows is sent before the group in front of it has ended: it
waits for that one at the conversation's lock, and is refused where it comes first. A conversation that another process
holds is passed over, and then waited for by itself: it delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from metrics.commits import CommitMetrics
from storage.append import Again, Append, Busy, Committed, Outcome, Stale, Waiting
from storage.config import CommitConfig
from storage.driver_errors import may_pass_at_once, outcome_is_unknown
from storage.errors import QueueFull, StorageUnavailable

log = structlog.get_logger(__name__)

# Told of every durable append, right after its client.
CommitListener = Callable[[Append, Committed], None]

_ATTEMPTS = 8  # of one append by itself, before its client is told to come back
_PAUSE = 0.05  # seconds before the second attempt, doubled each time


class Committer(Protocol):
    """What commits a group in one transaction."""

    async def commit(self, group: Sequence[Append], *, patient: bool) -> list[Outcome]: ...

    async def close(self) -> None: ...


class Finder(Protocol):
    """Looks up what became of an append whose answer never came."""

    async def find(self, append: Append) -> Committed | None: ...


class GroupCommit:
    """Accepts appends and gives their outcomes; tells `listener` of each that is durable.

    A client that goes away cancels nothing: once `submit` has queued an append, only the bound on waiting withdraws it.
    """

    def __init__(
        self,
        committer: Committer,
        finder: Finder,
        config: CommitConfig,
        listener: CommitListener,
        metrics: CommitMetrics,
        *,
        committers: int,
    ) -> None:
        self._committer = committer
        self._finder = finder
        self._config = config
        self._listener = listener
        self._metrics = metrics
        self._queues: dict[str, deque[Waiting]] = {}  # by conversation; the first of all is the next to go
        self._in_flight: dict[str, int] = {}  # in how many groups a conversation is
        self._resting: dict[str, asyncio.TimerHandle] = {}  # conversations whose deltas wait for others
        self._written: dict[str, set[str]] = {}  # by conversation: the messages of the last group's deltas
        self._patient: set[str] = set()  # conversations for which a group of their own waits
        self._patient_limit = max(1, committers - 1)  # one committer always stays for the others
        self._patient_now = 0
        self._others_now = 0  # groups in flight that are not patient
        self._last_begun = 0.0  # when the last of them began, in the loop's time
        self._headway: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._waiting_bytes = 0
        self._unanswered: dict[Waiting, None] = {}  # the oldest first
        self._expiry: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()  # nothing waits, nothing is in flight
        self._idle.set()
        self._committers = committers
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name=f"committer {n}") for n in range(self._committers)]

    async def close(self) -> None:
        """Commits what is queued, for the queue's bound on waiting at most, then stops."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.queue_seconds):
                    await self._idle.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._committer.close()

    def waiting(self) -> int:
        """How many appends are queued."""
        return self._waiting

    async def submit(self, append: Append) -> Outcome:
        """What became of the append.

        Raises `QueueFull` when it was not taken in, or withdrawn because it waited too long; and storage's errors when
        the database could not commit it.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        waiting = Waiting(append, loop.create_future(), loop.time() + config.queue_seconds)
        if self._waiting >= config.queue_appends or self._waiting_bytes + waiting.size > config.queue_bytes:
            raise QueueFull("too many writes are waiting")
        self._unanswered[waiting] = None
        if self._expiry is None:
            self._expiry = loop.call_at(waiting.deadline, self._expire)
        self._enqueue(waiting)
        # A client that goes away cancels its future, which nobody else looks at: the commit belongs to the process.
        return await waiting.outcome

    def _expire(self) -> None:
        """Tells those that have waited too long. One timer serves all: they end in the order in which they came."""
        self._expiry = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        overdue: list[Waiting] = []
        for waiting in self._unanswered:
            if waiting.deadline > now:
                self._expiry = loop.call_at(waiting.deadline, self._expire)
                break
            overdue.append(waiting)
        for waiting in overdue:
            queued = self._withdraw(waiting)
            waiting.withdrawn = True
            self._fail(waiting, QueueFull("it waited too long, and was withdrawn" if queued else "it took too long"))

    def _enqueue(self, waiting: Waiting) -> None:
        queue = self._queues.get(waiting.append.conversation_id)
        if queue is None:
            queue = self._queues[waiting.append.conversation_id] = deque()
        queue.append(waiting)
        self._idle.clear()
        self._waiting += 1
        self._waiting_bytes += waiting.size
        conversation_id = waiting.append.conversation_id
        if waiting.append.delta is None and conversation_id in self._resting:
            self._resting.pop(conversation_id).cancel()
        if waiting.append.follows is not None and conversation_id in self._in_flight and self._committers > 1:
            self._patient.add(conversation_id)
        # What must wait for the end of another group, or of its rest, wakes nobody: that end does.
        elif conversation_id in self._in_flight or conversation_id in self._resting or self._holds_back():
            return
        self._wake.set()

    def _rest(self, group: list[Waiting]) -> None:
        """Lets those conversations rest in which several write at once, and nothing but deltas."""
        written: dict[str, set[str]] = {}
        for waiting in group:
            append = waiting.append
            if append.delta is not None:
                written.setdefault(append.conversation_id, set()).add(append.delta.message_id)
        before, self._written = self._written, {}
        for conversation_id, messages in written.items():
            self._written[conversation_id] = messages
            # One who writes alone has nobody to wait for.
            together = len(messages | before.get(conversation_id, messages)) > 1
            queue = self._queues.get(conversation_id, ())
            if together and all(waiting.append.delta is not None for waiting in queue):
                timer = asyncio.get_running_loop().call_later(self._config.delta_gap, self._end_rest, conversation_id)
                self._resting[conversation_id] = timer

    def _end_rest(self, conversation_id: str) -> None:
        del self._resting[conversation_id]
        self._wake.set()

    def _requeue(self, group: list[Waiting]) -> None:
        """Back to the front, in their order; but not what has been given up, which must not be committed any more."""
        for waiting in reversed(group):
            if waiting.withdrawn:
                continue
            queue = self._queues.setdefault(waiting.append.conversation_id, deque())
            queue.appendleft(waiting)
            self._waiting += 1
            self._waiting_bytes += waiting.size
        self._wake.set()

    def _withdraw(self, waiting: Waiting) -> bool:
        queue = self._queues.get(waiting.append.conversation_id)
        if queue is None or waiting not in queue:
            return False
        queue.remove(waiting)
        if not queue:
            del self._queues[waiting.append.conversation_id]
            self._patient.discard(waiting.append.conversation_id)
        self._waiting -= 1
        self._waiting_bytes -= waiting.size
        if not self._queues and not self._in_flight:
            self._idle.set()
        return True

    def _take(self) -> tuple[list[Waiting], bool]:
        """The next group, and whether it is a patient one: then it is of one conversation."""
        config = self._config
        group: list[Waiting] = []
        claimed: set[object] = set()
        rows = size = 0
        held = self._holds_back()
        if held and not self._patient:
            return group, False
        for conversation_id in list(self._queues):
            if conversation_id in self._resting:
                continue
            queue = self._queues[conversation_id]
            under_way = self._in_flight.get(conversation_id, 0)
            if under_way and (under_way > 1 or queue[0].append.follows is None):
                continue
            patient = under_way > 0 or conversation_id in self._patient
            if held if not patient else group or self._patient_now >= self._patient_limit:
                continue
            taken = False
            while queue:
                waiting = queue[0]
                append = waiting.append
                if group and (rows + waiting.rows > config.group_rows or size + waiting.size > config.group_bytes):
                    break
                # What a conversation-wide change leaves behind must be seen by what comes after it, as must a claim,
                # and the message that another one follows.
                apart = append.conversation is not None or append.follows is not None
                if (taken and apart) or any(claim in claimed for claim in waiting.claims):
                    break
                queue.popleft()
                self._waiting -= 1
                self._waiting_bytes -= waiting.size
                group.append(waiting)
                claimed.update(waiting.claims)
                rows += waiting.rows
                size += waiting.size
                taken = True
                if append.conversation is not None:
                    break
            if not queue:
                del self._queues[conversation_id]
            elif taken:
                # To the end of the line: one busy conversation must not keep the others waiting.
                self._queues[conversation_id] = self._queues.pop(conversation_id)
            if taken:
                self._in_flight[conversation_id] = under_way + 1
            if group and (patient or rows >= config.group_rows or size >= config.group_bytes):
                return group, patient
        return group, False

    def _holds_back(self) -> bool:
        """Whether the next group, if it is no patient one, is to grow until one in flight ends, or takes too long."""
        if not self._others_now or self._waiting >= self._config.group_rows // 2:
            return False
        loop = asyncio.get_running_loop()
        due = self._last_begun + self._config.headway
        if loop.time() >= due:
            return False
        if self._headway is None:
            self._headway = loop.call_at(due, self._end_headway)
        return True

    def _end_headway(self) -> None:
        self._headway = None
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            group, patient = self._take()
            if not group:
                self._wake.clear()
                await self._wake.wait()
                continue
            conversations = {waiting.append.conversation_id for waiting in group}
            self._patient_now += patient
            if not patient:
                self._others_now += 1
                self._last_begun = loop.time()
            try:
                await self._commit(group, patient=patient)
            except Exception as error:
                log.exception("commit failed", appends=len(group))
                for waiting in group:
                    self._fail(waiting, error)
            finally:
                if patient:
                    self._patient_now -= 1
                    self._patient -= conversations
                else:
                    self._others_now -= 1
                self._leave(conversations)
                self._rest(group)
                if self._queues:
                    self._wake.set()
                elif not self._in_flight:
                    self._idle.set()

    def _leave(self, conversations: set[str]) -> None:
        for conversation_id in conversations:
            left = self._in_flight.pop(conversation_id) - 1
            if left:
                self._in_flight[conversation_id] = left

    async def _commit(self, group: list[Waiting], *, patient: bool) -> None:
        try:
            outcomes = await self._committer.commit([waiting.append for waiting in group], patient=patient)
        except Exception as error:
            await self._after_failure(group, error)
            return
        self._metrics.committed(len(group))
        back: list[Waiting] = []
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Busy):
                self._patient.add(waiting.append.conversation_id)
                back.append(waiting)
            elif isinstance(outcome, Again):
                back.append(waiting)
            else:
                self._settle(waiting, outcome)
        self._requeue(back)

    async def _after_failure(self, group: list[Waiting], error: Exception) -> None:
        unknown = outcome_is_unknown(error)
        log.warning("group failed", appends=len(group), error=repr(error), outcome_unknown=unknown)
        if isinstance(error, StorageUnavailable) and not unknown and not may_pass_at_once(error):
            # The database is not there, and said so before anything was written: each client may try again.
            for waiting in group:
                self._fail(waiting, error)
            return
        # A group that failed tells nothing of its appends: each goes on alone, and what may have been done
        # is looked up.
        for waiting in group:
            await self._commit_alone(waiting, error, unknown=unknown)

    async def _commit_alone(self, waiting: Waiting, error: Exception, *, unknown: bool) -> None:
        pause = _PAUSE
        for _ in range(_ATTEMPTS):
            if waiting.withdrawn:
                return  # its client was told that it took too long
            try:
                if unknown:
                    found = await self._finder.find(waiting.append)
                    if found is not None:
                        self._settle(waiting, found)
                        return
                [outcome] = await self._committer.commit([waiting.append], patient=True)
                if unknown and isinstance(outcome, Stale):
                    # It may be the lost one itself, committed since it was looked up, that changed what it expects.
                    outcome = await self._finder.find(waiting.append) or outcome
            except Exception as failure:
                error = failure
                unknown = unknown or outcome_is_unknown(failure)
                if not isinstance(failure, StorageUnavailable) and not unknown:
                    break
                await asyncio.sleep(pause)
                pause *= 2
                continue
            if not isinstance(outcome, Busy | Again):
                self._settle(waiting, outcome)
                return
        self._fail(waiting, error)

    def _settle(self, waiting: Waiting, outcome: Outcome) -> None:
        # The client first: its answer leaves before the bytes of the event are made for others.
        self._unanswered.pop(waiting, None)
        if not waiting.outcome.done():
            waiting.outcome.set_result(outcome)
        if isinstance(outcome, Committed):
            try:
                self._listener(waiting.append, outcome)
            except Exception:
                # It is committed: neither its client nor the rest of its group may be told otherwise.
                log.exception("a commit was not announced", conversation_id=waiting.append.conversation_id)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        self._unanswered.pop(waiting, None)
        if not waiting.outcome.done():
            waiting.outcome.set_exception(error)
