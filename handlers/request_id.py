"""The id under which a request is found in the log, and which its answer carries."""

from __future__ import annotations

import re
from contextvars import ContextVar

from aiohttp import web
from aiohttp.web_request import BaseRequest

from storage.records import new_id

HEADER = "X-Request-ID"
REQUEST_ID = web.RequestKey("request_id", str)
# The id of the request that this task answers: what is logged meanwhile carries it.
CURRENT: ContextVar[str] = ContextVar("request_id")

# Taken over from a proxy or a client; what could break a log line or fill it is not.
_SANE = re.compile(r"[\x21-\x7e]{1,128}")


def request_id(request: BaseRequest) -> str:
    """The request's id: the one it brought, if that is a sane one, else one of ours. The same at every call."""
    try:
        return request[REQUEST_ID]
    except KeyError:
        return name_request(request)


def name_request(request: BaseRequest) -> str:
    """Gives the request its id; to be called before anyone asks for it."""
    given = request.headers.get(HEADER)
    name = request[REQUEST_ID] = given if given is not None and _SANE.fullmatch(given) else new_id()
    return name
