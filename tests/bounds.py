"""Finds what has no bound in a type that clients fill: text, arrays, objects, numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect as types

# Of one length or of few values, whatever is sent.
_FIXED = (
    types.NoneType,
    types.BoolType,
    types.DateTimeType,
    types.DateType,
    types.TimeType,
    types.UUIDType,
    types.LiteralType,
    types.EnumType,
)


def unbounded(kind: Any) -> list[str]:
    """The places in the type `kind` that take any length, or any number. Raises `TypeError` for what it does not know.

    A bound is one of msgspec's, or one that a handler keeps and the schema tells: `maxLength` of a text, and
    `x-maxBytes` of free-form JSON, for all that is in it.
    """
    return sorted(set(_unbounded(types.type_info(kind), "", {}, frozenset())))


def _unbounded(kind: types.Type, where: str, told: dict[str, Any], within: frozenset[type]) -> Iterator[str]:
    match kind:
        case types.Metadata():
            yield from _unbounded(kind.type, where, {**told, **(kind.extra_json_schema or {})}, within)
        case _ if "x-maxBytes" in told or isinstance(kind, _FIXED):
            return
        case types.StrType():
            if kind.max_length is None and "maxLength" not in told and not _ends(kind.pattern):
                yield f"{where}: text"
        case types.IntType():
            if (kind.le is None and kind.lt is None) or (kind.ge is None and kind.gt is None):
                yield f"{where}: number"
        case types.ListType():
            if kind.max_length is None:
                yield f"{where}: array"
            yield from _unbounded(kind.item_type, f"{where}/0", {}, within)
        case types.DictType():
            if kind.max_length is None:
                yield f"{where}: object"
            yield from _unbounded(kind.key_type, f"{where}/key", {}, within)
            yield from _unbounded(kind.value_type, f"{where}/value", {}, within)
        case types.AnyType():
            yield f"{where}: anything"
        case types.UnionType():
            for member in kind.types:
                yield from _unbounded(member, where, told, within)
        case types.StructType():
            if kind.cls not in within:
                for field in kind.fields:
                    inner = within | {kind.cls}
                    yield from _unbounded(field.type, f"{where}/{field.encode_name}", {}, inner)
                if not kind.forbid_unknown_fields:
                    yield f"{where}: unknown fields"
        case _:
            raise TypeError(f"{where} is {kind}: nobody has said what bounds it")


def _ends(pattern: str | None) -> bool:
    """Whether no text of any length matches the pattern."""
    if pattern is None or not pattern.endswith("$"):
        return False
    most = re._parser.parse(pattern).getwidth()[1]  # type: ignore[attr-defined]
    return bool(most < 2**31)
