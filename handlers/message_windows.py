"""Windows of a conversation's messages: any position at the same price, with what a cache needs."""

from __future__ import annotations

import msgspec

from handlers import shapes
from handlers.conditional import is_fresh, strong_tag
from handlers.kinds import NOT_FOUND, UNAVAILABLE
from handlers.problem import Fault, invalid
from handlers.requests import WindowQuery
from handlers.resources import WINDOWS
from handlers.route import Call, Reply, Route
from storage.records import Window
from storage.windows import Anchor

_encode = msgspec.json.Encoder().encode


async def get_window(call: Call[WindowQuery, None]) -> Reply:
    window = await call.resource(WINDOWS).read(
        call.tenant, call.params["conversation_id"], _anchor(call.query), call.query.limit
    )
    following, preceding = _neighbours(call.query, window)
    tag = strong_tag(window.digest)
    headers = {
        "ETag": tag,
        # A private cache may keep it, and asks each time: any message of it may have been edited.
        "Cache-Control": "private, no-cache",
        "Link": _links(call.request.rel_url.raw_path, call.query.limit, following, preceding),
        # A 304 has no body: these bring what changes while the items stay.
        "Swarm-Total": str(window.total),
        "Swarm-As-Of": str(window.as_of),
    }
    if is_fresh(call.request, tag):
        return Reply(status=304, headers=headers)
    body = b'{"items":%b,"total":%d,"as_of":%d,"next":%b,"previous":%b}' % (
        window.items,
        window.total,
        window.as_of,
        _encode(following),
        _encode(preceding),
    )
    return Reply(body, headers=headers)


def _anchor(query: WindowQuery) -> Anchor:
    given: list[Anchor] = []
    if query.from_ is not None:
        given.append(Anchor("from", query.from_))
    if query.before is not None:
        given.append(Anchor("before", query.before))
    if query.after is not None:
        given.append(Anchor("after", query.after))
    if query.around is not None:
        given.append(Anchor("around", query.around))
    if len(given) > 1:
        raise invalid(
            *(Fault("only one of from, before, after and around can be given", parameter=a.kind) for a in given)
        )
    return given[0] if given else Anchor("newest")


def _neighbours(query: WindowQuery, window: Window) -> tuple[int | None, int | None]:
    """The position to give as `after` for what follows, and the one to give as `before` for what precedes, or None.

    Positions have no holes: what lies beyond a window is known without looking. An empty window lies past one of the
    two ends.
    """
    if window.last:
        first, last = window.first, window.last
    elif query.before is not None:
        first, last = 1, 0
    else:
        first, last = window.total + 1, window.total
    return (last if last < window.total else None), (first if first > 1 else None)


def _links(path: str, limit: int, following: int | None, preceding: int | None) -> str:
    """RFC 8288, relative to the server."""
    links = [f'<{path}?from=1&limit={limit}>; rel="first"', f'<{path}?limit={limit}>; rel="last"']
    if following is not None:
        links.append(f'<{path}?after={following}&limit={limit}>; rel="next"')
    if preceding is not None:
        links.append(f'<{path}?before={preceding}&limit={limit}>; rel="prev"')
    return ", ".join(links)


ROUTES = (
    Route(
        method="GET",
        path="/api/conversations/{conversation_id}/messages",
        handler=get_window,
        summary="A window of a conversation's messages",
        tag="Messages",
        query=WindowQuery,
        response=shapes.MessageWindow,
        also={304: None},
        request_headers={"If-None-Match": "Tags of windows at hand: 304 when nothing in the items has changed."},
        headers={
            "ETag": "Of the items alone.",
            "Link": "The first, last, next and previous windows (RFC 8288).",
            "Swarm-Total": "How many messages the conversation has.",
            "Swarm-As-Of": "The seq that the window is true as of.",
        },
        problems=(NOT_FOUND, UNAVAILABLE),
    ),
)
