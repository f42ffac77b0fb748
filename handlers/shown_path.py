"""A request's path as it is told again: in the log, and in the documents of errors, which clients log in their turn."""

from __future__ import annotations

import re

from aiohttp.web_request import BaseRequest

# As long as the secret of a credential. No id is (but an agent's may be, of the longest length): whoever puts a key or
# a token into a path by mistake is not to find it in a log.
_LIKE_A_SECRET = re.compile(r"[^/]{64,}")


def shown_path(request: BaseRequest) -> str:
    """The path without its query, which may hold a ticket. A part that may be a secret is `*`."""
    return _LIKE_A_SECRET.sub("*", request.rel_url.raw_path)
