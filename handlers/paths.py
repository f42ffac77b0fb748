"""The parameters that stand in paths. What does not look like an id is not found: it never reaches the database."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web
from msgspec import Struct

from handlers.problem import Fault, invalid, not_found

AGENT_ID = r"[a-z0-9_-]{1,64}"
KEY_ID = r"[0-9a-f]{16}"


class PathParameter(Struct, frozen=True):
    """`what` is the thing that an id names."""

    what: str
    pattern: re.Pattern[str]
    schema: dict[str, Any]


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_SCHEMA = {"type": "string", "format": "uuid"}

PARAMETERS = {
    "conversation_id": PathParameter("conversation", _UUID, _UUID_SCHEMA),
    "message_id": PathParameter("message", _UUID, _UUID_SCHEMA),
    "agent_id": PathParameter("agent", re.compile(AGENT_ID), {"type": "string", "pattern": f"^{AGENT_ID}$"}),
    "key_id": PathParameter("key", re.compile(KEY_ID), {"type": "string", "pattern": f"^{KEY_ID}$"}),
    "kind": PathParameter("kind of problem", re.compile(r"[a-z-]{1,64}"), {"type": "string"}),
}


def read_path(request: web.Request) -> dict[str, str]:
    """The parameters of the request's path. Raises 404, and 422 for an id under which nothing can be made."""
    values: dict[str, str] = {}
    for name, text in request.match_info.items():
        parameter = PARAMETERS[name]
        # An id may be written in upper case (RFC 9562, 4); rows hold it in lower case.
        value = text.lower() if parameter.pattern is _UUID else text
        if parameter.pattern.fullmatch(value) is None:
            if request.method == "PUT":  # it would be made under this id
                raise invalid(Fault(f"must match {parameter.pattern.pattern}", parameter=name))
            raise not_found(parameter.what)
        values[name] = value
    return values
