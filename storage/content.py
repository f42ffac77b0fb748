"""What a message says, as an SQL expression: the same in every read, of the same snapshot as the rest of its row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, case, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage.tables import messages


class _TextOfDeltas(FunctionElement[str]):
    """The texts in the payloads of the message's `message.delta` events, in the order of their seqs, as one."""

    type = Text()
    inherit_cache = True


@compiles(_TextOfDeltas, "postgresql")
def _postgresql(element: _TextOfDeltas, compiler: SQLCompiler, **options: Any) -> str:
    # `json` is only read as far as the member; `jsonb` would be built first.
    message_id = compiler.process(element.clauses, **options)
    return (
        "coalesce((SELECT string_agg(CAST(delta.payload AS json) ->> 'text', '' ORDER BY delta.seq)"  # noqa: S608
        f" FROM events AS delta WHERE delta.message_id = {message_id} AND delta.kind = 'message.delta'), '')"
    )


@compiles(_TextOfDeltas, "sqlite")
def _sqlite(element: _TextOfDeltas, compiler: SQLCompiler, **options: Any) -> str:
    # An aggregate takes the rows of a sorted subquery in their order. Its own ORDER BY came with SQLite 3.44.
    message_id = compiler.process(element.clauses, **options)
    return (
        "coalesce((SELECT group_concat(text, '') FROM"  # noqa: S608
        " (SELECT json_extract(delta.payload, '$.text') AS text FROM events AS delta"
        f" WHERE delta.message_id = {message_id} AND delta.kind = 'message.delta' ORDER BY delta.seq)), '')"
    )


# While a message streams its text is that of its deltas. A CASE evaluates the branch that it takes and no other: a
# finished message costs no look at the events.
CONTENT: ColumnElement[str] = case(
    (messages.c.status == literal_column("'streaming'"), _TextOfDeltas(messages.c.id)), else_=messages.c.content
).label("content")
