"""Errors as clients get them (RFC 9457), and the one table that turns exceptions into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from events import errors as event_errors
from handlers.kinds import (
    CONFLICT,
    FULL,
    INTERNAL,
    INVALID,
    KEY_REUSED,
    MALFORMED,
    NOT_FOUND,
    UNAUTHORIZED,
    UNAVAILABLE,
    Kind,
    kind_of_status,
)
from storage import errors as storage_errors

MEDIA_TYPE = "application/problem+json"


class Fault(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong, and where: a JSON pointer (RFC 6901) into the body, a query parameter or a header."""

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET
    header: str | UnsetType = UNSET


class ProblemDocument(Struct, frozen=True, kw_only=True):
    """The body of every error."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[Fault]


class Problem(Exception):
    """Raised to answer with an error. `members` are further members of the document (RFC 9457, 3.2)."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        errors: Sequence[Fault] = (),
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def document(self, instance: str, request_id: str) -> bytes:
        """The encoded document. `instance` is the path that was asked for: never its query, which may hold a secret."""
        document = ProblemDocument(
            type=self.kind.type,
            title=self.kind.title,
            status=self.kind.status,
            detail=self.detail,
            instance=instance,
            request_id=request_id,
            errors=self.errors,
        )
        return msgspec.json.encode({**msgspec.to_builtins(document), **self.members})


def malformed(detail: str) -> Problem:
    return Problem(MALFORMED, detail)


def not_found(what: str) -> Problem:
    return Problem(NOT_FOUND, f"There is no such {what}.")


def invalid(*faults: Fault) -> Problem:
    """422, with a detail that reads by itself."""
    fault = faults[0]
    place = fault.parameter or fault.header or fault.pointer or "the body"
    return Problem(INVALID, f"{place}: {fault.detail}", faults)


def _unavailable(seconds: int) -> Callable[[Any], Problem]:
    headers = {"Retry-After": str(seconds)}
    return lambda error: Problem(UNAVAILABLE, "The server cannot do this for now; try again.", headers=headers)


def _of_aiohttp(error: web.HTTPException) -> Problem:
    details = {
        404: "There is nothing at this path.",
        405: "This path does not know that method.",
        413: "The body is larger than the server accepts.",
        417: "Only 100-continue can be expected.",
    }
    kind = kind_of_status(error.status)
    allow = error.headers.get("Allow")
    return Problem(kind, details.get(error.status, kind.meaning), headers={"Allow": allow} if allow else None)


# The nearest base class of an exception decides. What is not here is a fault of ours: 500.
_PROBLEMS: dict[type[Exception], Callable[[Any], Problem]] = {
    Problem: lambda error: error,
    storage_errors.NotFound: lambda error: not_found(error.what),
    storage_errors.UnknownAgent: lambda error: invalid(Fault("there is no such agent", pointer="/agent_id")),
    storage_errors.UnknownReply: lambda error: invalid(
        Fault("there is no such message in this conversation", pointer="/reply_to")
    ),
    storage_errors.InvalidCursor: lambda error: invalid(
        Fault("this is no cursor that this list has given out", parameter="cursor")
    ),
    storage_errors.KeyReused: lambda error: Problem(
        KEY_REUSED,
        "This idempotency key was used before for another request.",
        [Fault("was used before for another request", header="Idempotency-Key")],
    ),
    storage_errors.CredentialEnded: lambda error: Problem(
        UNAUTHORIZED,
        "The credential has been revoked.",
        headers={"WWW-Authenticate": 'Bearer realm="swarm", error="invalid_token"'},
    ),
    storage_errors.MessageDeleted: lambda error: Problem(CONFLICT, "The message was deleted; it cannot be edited."),
    event_errors.StillStreaming: lambda error: Problem(
        CONFLICT, "The message is still streaming; it can be edited when it is finished."
    ),
    event_errors.DeltaRefused: lambda error: Problem(
        CONFLICT,
        "The text does not continue what is there."
        if error.status == "streaming"
        else "The message does not stream any more.",
        members={"length": error.length, "message_status": error.status},
    ),
    event_errors.NotStreaming: lambda error: Problem(
        CONFLICT,
        f"The message is {error.status}; it cannot be finished otherwise.",
        members={"message_status": error.status},
    ),
    # An append that others kept overtaking can be tried at once; a queue drains in about a second.
    storage_errors.QueueFull: _unavailable(1),
    storage_errors.Contended: _unavailable(1),
    storage_errors.StorageUnavailable: _unavailable(2),
    storage_errors.StorageFull: lambda error: Problem(FULL, "The database has no room left."),
    # The connection is there and its body is not: a bad chunk, a bad coding.
    web.RequestPayloadError: lambda error: malformed("The body does not hold what its headers say."),
    web.HTTPException: _of_aiohttp,
}

INTERNAL_ERROR = Problem(INTERNAL, "Something went wrong here. The server's log has it under this request_id.")


def as_problem(error: Exception) -> Problem | None:
    """What to answer for `error`, or None when it is a fault of ours."""
    for base in type(error).__mro__:
        make = _PROBLEMS.get(base)
        if make is not None:
            return make(error)
    return None
