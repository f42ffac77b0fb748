"""Whose a stream is."""

from __future__ import annotations

from typing import NamedTuple


class Owner(NamedTuple):
    """A client's address, and the principal that it speaks for: a tenant, and a name in it."""

    address: str
    principal: tuple[str, str]
