"""A request's path as it is told again: in the log, and in the documents of errors, which clients log in their turn."""

from __future__ import annotations

from aiohttp.web_request import BaseRequest

# As long as the secret of a credential. No id is (but an agent's may be, of the longest length): whoever puts a key or
# a token into a path by mistake is not to find it in a log.
_SECRET = 64


def shown_path(request: BaseRequest) -> str:
    """The path without its query, which may hold a ticket. A part that may be a secret is `*`."""
    path: str = request.rel_url.raw_path
    if len(path) <= _SECRET:
        return path
    parts = path.split("/")
    if max(map(len, parts)) < _SECRET:
        return path
    return "/".join("*" if len(part) >= _SECRET else part for part in parts)
