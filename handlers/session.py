"""Sessions of browsers, and tickets for streams that a page of another origin opens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from handlers.kinds import UNAVAILABLE
from handlers.multiplexed_streams import CONVERSATIONS
from handlers.principal import ANONYMOUS_ROOT, AUTHENTICATION, Principal
from handlers.problem import Fault, invalid
from handlers.resources import CREDENTIALS, LIVES
from handlers.route import Call, Reply, Route
from storage.credentials import SCOPES, Giver, Scope
from storage.records import now

_SESSION = "/api/session"
_SECRET = {"Cache-Control": "no-store"}


class Session(Struct, frozen=True):
    """Who is asking. `expires_at` is when a session ends that nobody uses; null where no session speaks."""

    tenant: str
    principal: str
    scopes: list[Scope]
    expires_at: datetime | None


class NewTicket(Struct, frozen=True, forbid_unknown_fields=True):
    """What the ticket is to open: streams of these conversations, and the feed or not."""

    conversations: Annotated[list[UUID], Meta(max_length=CONVERSATIONS)] = []
    feed: bool = False


class Ticket(Struct, frozen=True):
    """To be put into a stream's address as `?ticket=…`; it opens streams until `expires_at`."""

    ticket: str
    expires_at: datetime


async def create_session(call: Call[Any, None]) -> Reply:
    """201 with the cookie of a session that may do what the shown credential may."""
    lives = call.resource(LIVES)
    made, shown = await call.resource(CREDENTIALS).create_session(
        _giver(call.who), timedelta(seconds=lives.session_life), timedelta(seconds=lives.session_most)
    )
    assert made.ends_at is not None
    cookie = call.resource(AUTHENTICATION).cookie(shown, (made.ends_at - now()).total_seconds())
    return Reply(_session(call.who, made.expires_at), headers={**cookie, **_SECRET})


async def get_session(call: Call[Any, None]) -> Reply:
    return Reply(_session(call.who, call.who.session_expires), headers=_SECRET)


async def end_session(call: Call[Any, None]) -> Reply:
    """204, and the browser forgets the cookie. Nothing ends where no session speaks."""
    authentication = call.resource(AUTHENTICATION)
    if call.who.session is not None:
        ended = await call.resource(CREDENTIALS).end_session(call.tenant, call.who.session, call.principal)
        authentication.forget(ended)
    return Reply(status=204, headers={**authentication.cookie("", 0)})


async def create_ticket(call: Call[Any, NewTicket]) -> Reply:
    """201. Whether the conversations are there is not looked at: streams of others find nothing, ticket or not."""
    body = call.body
    if not body.conversations and not body.feed:
        raise invalid(Fault("names neither conversations nor the feed", pointer=""))
    made, shown = await call.resource(CREDENTIALS).create_ticket(
        _giver(call.who),
        frozenset(map(str, body.conversations)),
        body.feed,
        timedelta(seconds=call.resource(LIVES).ticket_life),
    )
    assert made.expires_at is not None
    return Reply(Ticket(shown, made.expires_at), headers=_SECRET)


def _giver(who: Principal) -> Giver:
    """Who comes without a credential, where none is needed, gives as that one."""
    return who.giver or Giver(who.tenant, who.name, who.scopes, ANONYMOUS_ROOT, None, None)


def _session(who: Principal, expires_at: datetime | None) -> Session:
    return Session(who.tenant, who.name, [scope for scope in SCOPES if scope in who.scopes], expires_at)


_DESCRIPTION = (
    "A browser keeps what the answer sets, the cookie `__Host-swarm`: no script can read it, and no other site's page"
    " has it sent. It is good over https, and on localhost. A session ends with the credential that it was made of."
)

ROUTES = (
    Route(
        method="POST",
        path=_SESSION,
        handler=create_session,
        summary="Begin a session in a browser",
        tag="Credentials",
        response=Session,
        status=201,
        headers={"Set-Cookie": "The session."},
        problems=(UNAVAILABLE,),
        access="anyone",
        keyed=False,
        description=_DESCRIPTION,
    ),
    Route(
        method="GET",
        path=_SESSION,
        handler=get_session,
        summary="Who is asking",
        tag="Credentials",
        response=Session,
        problems=(UNAVAILABLE,),
        access="anyone",
    ),
    Route(
        method="DELETE",
        path=_SESSION,
        handler=end_session,
        summary="End the session",
        tag="Credentials",
        status=204,
        headers={"Set-Cookie": "None, from now on."},
        problems=(UNAVAILABLE,),
        access="anyone",
        keyed=False,
    ),
    Route(
        method="POST",
        path="/api/tickets",
        handler=create_ticket,
        summary="A ticket for streams of a page that has no cookie",
        tag="Credentials",
        body=NewTicket,
        example={"conversations": ["0197b0d6-3c65-7d51-a9a8-7a0cf1f4f2a1"]},
        response=Ticket,
        status=201,
        problems=(UNAVAILABLE,),
        access="read",
        keyed=False,
        description="An `EventSource` cannot send a header, and another origin's page has no cookie: it puts a ticket"
        " into the address. A stream that a ticket has opened stays open when the ticket expires, and ends with the"
        " credential that the ticket was made of. To reconnect later takes a new ticket.",
    ),
)
