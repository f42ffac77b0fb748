"""What every response tells a browser not to do with it.

The answers are data for programs: no page may frame them, run anything of them, or load them without being allowed to
read them (OWASP's HTTP Headers Cheat Sheet and REST Security Cheat Sheet).
"""

from __future__ import annotations

from collections.abc import Mapping

CACHE = "Cache-Control"
POLICY = "Content-Security-Policy"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # For loads that do not ask by CORS, such as a `<script>` of another site; one that does is answered by CORS alone.
    "Cross-Origin-Resource-Policy": "same-origin",
    POLICY: "default-src 'none'; frame-ancestors 'none'",
    CACHE: "no-store",
}
"""Of these, a route may say `Cache-Control` and `Content-Security-Policy` itself."""


def _lines(*without: str) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items() if name not in without)


_ALL = _lines()
# By whether the policy and the caching are said already.
_REST = {
    (False, False): _ALL,
    (False, True): _lines(CACHE),
    (True, False): _lines(POLICY),
    (True, True): _lines(CACHE, POLICY),
}


def security_lines(given: Mapping[str, str] | None) -> str:
    """The headers, less what is `given` already, as the lines of a head."""
    return _REST[POLICY in given, CACHE in given] if given else _ALL
