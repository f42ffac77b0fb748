"""Entity tags and the requests that depend on them (RFC 9110, 8.8.3 and 13.1.2)."""

from __future__ import annotations

import re

from aiohttp import web

# An opaque tag is visible ASCII without quotes, or bytes beyond; a client may send a weak one back.
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\U0010ffff]*")')


def strong_tag(digest: str) -> str:
    """The same for the same bytes alone, as their digest is."""
    return f'"{digest}"'


def is_fresh(request: web.Request, tag: str) -> bool:
    """Whether the client has the representation with this tag, so that 304 says enough. Compared weakly (13.1.2)."""
    given = request.headers.getall("If-None-Match", None)
    if given is None:
        return False
    listed = ",".join(given)
    return listed.strip() == "*" or tag in _TAG.findall(listed)
