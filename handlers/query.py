"""Query parameters, read into a Struct: what it does not name, and what comes twice, is refused."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import NODEFAULT, Struct
from msgspec import inspect as types

from handlers.json_text import is_unstorable
from handlers.problem import Fault, invalid

Q = TypeVar("Q")

# Digits of the largest whole number that every JSON reader holds, 2**53 - 1: longer ones are not even parsed.
_DIGITS = 16
LARGEST = 2**53 - 1


class Parameter(Struct, frozen=True):
    """One parameter: a whole number from `least` to `most`, a text of at most `most` characters, or a switch."""

    name: str
    required: bool
    kind: Literal["number", "text", "switch"]
    least: int = 0
    most: int = 0

    def read(self, text: str) -> int | str | bool:
        """Raises 422, naming the parameter."""
        if self.kind == "switch":
            if text not in {"true", "false"}:
                raise invalid(Fault("must be true or false", parameter=self.name))
            return text == "true"
        if self.kind == "number":
            # isdigit() alone accepts the digits of other scripts; int() alone accepts signs, blanks and underscores.
            if text.isascii() and text.isdigit() and len(text) <= _DIGITS:
                number = int(text)
                if self.least <= number <= self.most:
                    return number
            raise invalid(Fault(f"must be a whole number from {self.least} to {self.most}", parameter=self.name))
        if len(text) > self.most or is_unstorable(text):
            raise invalid(Fault(f"must be a text of at most {self.most} characters without NUL", parameter=self.name))
        return text


class QueryReader(Generic[Q]):
    """Reads the query of a request into `struct`.

    Its fields are integers or strings, with bounds in their `Meta`, or booleans.
    """

    def __init__(self, struct: type[Q]) -> None:
        described = types.type_info(struct)
        if not isinstance(described, types.StructType):
            raise TypeError(f"{struct} is no Struct")
        self._struct = struct
        self.parameters = {field.encode_name: _parameter(field) for field in described.fields}
        self._required = frozenset(name for name, parameter in self.parameters.items() if parameter.required)
        # What a request without a query asks for.
        self._absent = None if self._required else struct()

    def read(self, request: web.Request) -> Q:
        """Raises 422."""
        if self._absent is not None and not request.rel_url.raw_query_string:
            return self._absent
        query = request.query
        values: dict[str, Any] = {}
        for name, text in query.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                raise invalid(Fault("is no parameter of this route", parameter=name[:100]))
            if name in values:
                raise invalid(Fault("must be given only once", parameter=name))
            values[name] = parameter.read(text)
        for name in sorted(self._required - values.keys()):
            raise invalid(Fault("is required", parameter=name))
        return msgspec.convert(values, self._struct)


class NoParameters(Struct, frozen=True):
    """The query of a route that has none."""


def _parameter(field: types.Field) -> Parameter:
    required = field.default is NODEFAULT and field.default_factory is NODEFAULT
    kind = field.type
    if isinstance(kind, types.UnionType):  # an optional one
        kind = next(member for member in kind.types if not isinstance(member, types.NoneType))
    if isinstance(kind, types.Metadata):  # a described one
        kind = kind.type
    if isinstance(kind, types.IntType):
        least = 0 if kind.ge is None else kind.ge
        return Parameter(field.encode_name, required, "number", least, LARGEST if kind.le is None else kind.le)
    if isinstance(kind, types.StrType) and kind.max_length is not None:
        return Parameter(field.encode_name, required, "text", 0, kind.max_length)
    if isinstance(kind, types.BoolType):
        return Parameter(field.encode_name, required, "switch")
    raise TypeError(f"the query parameter {field.name} is no whole number, no switch, and no text with a max_length")
