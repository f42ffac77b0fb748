"""`REDIS_URL`, checked before anything connects."""

from __future__ import annotations

from urllib.parse import urlsplit

_SCHEMES = frozenset({"redis", "rediss"})


def parse_redis_url(text: str) -> str:
    """The address as it was. Raises `ValueError`, with one sentence that names the variable and repeats no password."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or text.split() != [text]:
        raise ValueError("REDIS_URL must look like redis://user:password@host:port/0, or rediss://… for TLS.")
    return text
