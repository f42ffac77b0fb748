"""The state of a conversation since a seq, in pages: what a reader is given whose events are gone from the log.

Each thing is given once, as it is now, in the order of the seqs that last touched it. A page is one statement, and so
one snapshot: items, texts of streaming messages, floor and head agree with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage.records import StateItem, StatePage
from storage.rows import CONVERSATION_COLUMNS, MESSAGE_COLUMNS, RUN_COLUMNS, conversation, message, run
from storage.statement import Statement
from storage.tables import Id, conversations, messages, runs, streaming_messages, timeline

# No page has more items. It stands in the SQL as a number and not as a parameter: PostgreSQL plans a statement that it
# keeps without knowing its parameters, and would prepare for a tenth of the conversation.
MOST_ITEMS = 1_000
_MOST = literal_column(str(MOST_ITEMS + 1), BigInteger)


class _Octets(FunctionElement[int]):
    """The size of a text in bytes. PostgreSQL knows it without fetching what is stored apart from its row."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Octets, "postgresql")
def _octet_length(element: _Octets, compiler: SQLCompiler, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(_Octets, "sqlite")
def _length_of_blob(element: _Octets, compiler: SQLCompiler, **options: Any) -> str:
    # `octet_length` came with SQLite 3.43.
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


_conversation_id = bindparam("conversation_id", type_=Id)
_after = bindparam("after", type_=BigInteger)
_no_id: ColumnElement[Any] = cast(null(), Id)

_m, _s, _r, _c = messages.c, streaming_messages.c, runs.c, conversations.c
_around_the_text: ColumnElement[int] = _Octets(_m.tool_calls) + _Octets(_m.metadata)
# Each branch is a range of an index that is in order already; a streaming message's own row says only when it was last
# touched by something else than a delta, so it is left to the second branch.
_touched = union_all(
    select(
        select(
            _m.last_seq.label("seq"),
            _m.id.label("message_id"),
            _no_id.label("run_id"),
            (func.coalesce(_m.length, 0) + _around_the_text).label("size"),
        )
        .where(_m.conversation_id == _conversation_id, _m.last_seq > _after, _m.status != "streaming")
        .order_by(_m.last_seq)
        .limit(_MOST)
        .subquery("finished")
    ),
    select(
        select(_s.last_seq, _s.message_id, _no_id, _s.length + _around_the_text)
        .join_from(streaming_messages, messages, and_(_m.tenant == _s.tenant, _m.id == _s.message_id))
        .where(_s.conversation_id == _conversation_id, _s.last_seq > _after, _m.status == "streaming")
        .order_by(_s.last_seq)
        .limit(_MOST)
        .subquery("streaming")
    ),
    select(
        select(_r.last_seq, _no_id, _r.id, _Octets(func.coalesce(_r.error, "")))
        .where(_r.conversation_id == _conversation_id, _r.last_seq > _after)
        .order_by(_r.last_seq)
        .limit(_MOST)
        .subquery("run")
    ),
    select(_c.state_seq, _no_id, _no_id, _Octets(_c.metadata)).where(_c.id == _conversation_id, _c.state_seq > _after),
).subquery("touched")

# A message and its run may have been touched by one append, and so have the same seq: a page never ends between them,
# since a reader goes on after the seq of what it had last.
_in_order = select(
    _touched,
    func.rank().over(order_by=_touched.c.seq).label("rank"),
    (
        func.sum(_touched.c.size).over(order_by=_touched.c.seq)
        - func.sum(_touched.c.size).over(partition_by=_touched.c.seq)
    ).label("before"),
    func.count().over().label("found"),
).subquery("in_order")
_fits = or_(
    _in_order.c.rank == 1,
    and_(
        _in_order.c.rank <= bindparam("limit", type_=BigInteger),
        _in_order.c.before < bindparam("budget", type_=BigInteger),
    ),
)

_head = conversations.alias("head")
STATE_PAGE = Statement(
    "log.state",
    select(
        select(timeline.c.epoch).scalar_subquery(),
        _head.c.floor_seq,
        _head.c.last_seq,
        _head.c.deleted_at,
        _in_order.c.found,
        _in_order.c.seq,
        _in_order.c.message_id,
        _in_order.c.run_id,
        *MESSAGE_COLUMNS,
        *RUN_COLUMNS,
        *CONVERSATION_COLUMNS,
    )
    .select_from(
        _head.outerjoin(_in_order, _fits)
        .outerjoin(messages, and_(_m.tenant == _head.c.tenant, _m.id == _in_order.c.message_id))
        .outerjoin(runs, and_(_r.tenant == _head.c.tenant, _r.id == _in_order.c.run_id))
        # Only beside its own item: its metadata would come with each of the others.
        .outerjoin(
            conversations,
            and_(
                _c.id == _head.c.id,
                _c.state_seq == _in_order.c.seq,
                _in_order.c.message_id.is_(None),
                _in_order.c.run_id.is_(None),
            ),
        )
    )
    .where(_head.c.id == _conversation_id, _head.c.tenant == bindparam("tenant"))
    # What a run did last comes after the message that it did it to.
    .order_by(_in_order.c.seq, _in_order.c.run_id.is_not(None)),
)

_FIRST_OF_MESSAGE = 8
_FIRST_OF_RUN = _FIRST_OF_MESSAGE + len(MESSAGE_COLUMNS)
_FIRST_OF_CONVERSATION = _FIRST_OF_RUN + len(RUN_COLUMNS)


def state_page(rows: Sequence[Any]) -> StatePage:
    """The rows of `STATE_PAGE`, of which there is one at least."""
    epoch, floor, head, deleted_at, found = rows[0][:5]
    items = [_item(row) for row in rows if row[5] is not None]
    return StatePage(epoch, floor, head, deleted_at is not None, len(items) == (found or 0), items)


def _item(row: Sequence[Any]) -> StateItem:
    seq, message_id, run_id = row[5:8]
    if message_id is not None:
        return StateItem(seq, message(row[_FIRST_OF_MESSAGE:]))
    if run_id is not None:
        return StateItem(seq, run(row[_FIRST_OF_RUN:]))
    return StateItem(seq, conversation(row[_FIRST_OF_CONVERSATION:]))
