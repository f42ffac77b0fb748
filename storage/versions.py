"""Which version conversations are at now, asked of the database by many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from storage.database import Database
from storage.records import Version
from storage.statement import RawStatement, array_parameter

# The timeline is on the left: its epoch comes back with no conversation at all.
_VERSIONS = RawStatement(
    "conversations.versions",
    postgresql=(
        "SELECT t.epoch, c.id, c.tenant, c.last_seq FROM timeline t"
        " LEFT JOIN conversations c ON c.id = ANY($1::uuid[]) AND c.deleted_at IS NULL"
    ),
    sqlite=(
        "SELECT t.epoch, c.id, c.tenant, c.last_seq FROM timeline t LEFT JOIN conversations c"
        " ON c.id IN (SELECT value FROM json_each(?1)) AND c.deleted_at IS NULL"
    ),
    parameters=["ids"],
)


class _Question(NamedTuple):
    tenant: str
    conversation_id: str
    answer: asyncio.Future[Version | None]


class VersionReader:
    """All who ask while a query is under way share the next one, which begins after the last of them has asked.

    One query at a time serves all tenants.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Question] = []
        self._asking = False

    async def read(self, tenant: str, conversation_id: str) -> Version | None:
        """The conversation's version, which is at least as new as what was acknowledged before this was called.

        None where it is not there, is not the tenant's, or is deleted. Raises storage's errors.
        """
        # One each, and not one for all: whoever goes away cancels what it waits for.
        answer: asyncio.Future[Version | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Question(tenant, conversation_id, answer))
        if not self._asking:
            self._asking = True
            self._database.to_its_end(self._ask())
        return await answer

    async def _ask(self) -> None:
        try:
            while self._waiting:
                # Before the query: what it sees was committed when it began, and who comes later may know of more.
                questions, self._waiting = self._waiting, []
                await self._answer(questions)
        finally:
            self._asking = False

    async def _answer(self, questions: Sequence[_Question]) -> None:
        ids = list({question.conversation_id for question in questions})
        try:
            rows = await self._database.fetch_inside(_VERSIONS, {"ids": array_parameter(self._database.dialect, ids)})
        except Exception as error:
            for question in questions:
                if not question.answer.done():
                    question.answer.set_exception(error)
            return
        versions: dict[tuple[Any, Any], Version] = {
            (tenant, conversation_id): Version(epoch, last_seq)
            for epoch, conversation_id, tenant, last_seq in rows
            if conversation_id is not None
        }
        for question in questions:
            if not question.answer.done():
                question.answer.set_result(versions.get((question.tenant, question.conversation_id)))
