"""Origins as an operator lists them."""

from __future__ import annotations

import re

_ORIGIN = re.compile(r"(https?)://((?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_IMPLIED = {"http": "80", "https": "443"}


def parse_origins(text: str) -> frozenset[str]:
    """The origins in a comma-separated list, each as browsers say it (RFC 6454, 6.2). Raises `ValueError`."""
    return frozenset(_origin(part.strip()) for part in text.split(",")) if text else frozenset()


def _origin(text: str) -> str:
    if text == "*":
        raise ValueError(
            "SWARM_CORS_ORIGINS cannot be `*`, with which any page that a user opens could read and write here: list"
            " the origins of your front ends."
        )
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        raise ValueError
    scheme, host, port = found.groups()
    return f"{scheme}://{host}" if port in {None, _IMPLIED[scheme]} else f"{scheme}://{host}:{port}"
