"""Whose a stream is."""

from __future__ import annotations

from typing import NamedTuple


class Access(NamedTuple):
    """By what a stream was opened: the credential with that id, where one is kept, and until when it is good.

    `expires` is in Unix seconds; None: until somebody revokes it.
    """

    credential: str = ""
    expires: float | None = None


class Owner(NamedTuple):
    """A client's address, the principal that it speaks for (a tenant, and a name in it), and by what it does."""

    address: str
    principal: tuple[str, str]
    access: Access = Access()
