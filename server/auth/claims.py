"""What a token says that is believed, and how it is said that it is not."""

from __future__ import annotations

from msgspec import Struct


class Claims(Struct, frozen=True):
    """What is believed: who it is, whose data they see, what they may do, and until when (`exp`, in Unix seconds).

    A token is accepted for `leeway` more seconds, lest it depend on whose clock is ahead.
    """

    subject: str
    tenant: str
    scopes: frozenset[str]
    expires: float


class TokenRefused(Exception):
    """`reason` is a short sentence that names the claim or the part that is wrong, and holds nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeysUnavailable(Exception):
    """Whether a token is good cannot be said now: the keys could not be fetched, or not often enough."""
