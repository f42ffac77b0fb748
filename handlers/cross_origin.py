"""Writes that another site's page has its visitor's browser send."""

from __future__ import annotations

from aiohttp.web_request import BaseRequest

from handlers.kinds import CROSS_ORIGIN
from handlers.problem import Problem
from handlers.proxies import Proxies

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing (RFC 9110, 9.2.1)
_OWN = frozenset({"same-origin", "none"})  # none: the user did it by hand
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def refuse_cross_origin(request: BaseRequest, proxies: Proxies, *, required: bool) -> None:
    """Raises 403 for a write that comes from another origin's page, as far as the browser says where it comes from.

    `Sec-Fetch-Site` decides, which no script can set; a browser without it sends `Origin` with every write that a page
    makes (OWASP's Cross-Site Request Forgery Prevention Cheat Sheet, "Fetch Metadata" and "Verifying Origin With
    Standard Headers"). A request with neither is no modern browser's: with `required` it is refused as well, as where a
    cookie is all that speaks for it.
    """
    if request.method in _SAFE:
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site in _OWN
    elif origin is not None:
        allowed = origin.lower() == _own_origin(request, proxies)
    else:
        allowed = not required
    if not allowed:
        raise Problem(CROSS_ORIGIN, "A page of another origin may not do this.")


def _own_origin(request: BaseRequest, proxies: Proxies) -> str:
    """As a browser says it: a port that the scheme implies is left out (RFC 6454, 6.2)."""
    scheme = proxies.scheme(request)
    host = request.headers.get("Host", "").lower().removesuffix(_DEFAULT_PORTS[scheme])
    return f"{scheme}://{host}"
