"""A rate, such as `600/minute`, in the notation of the `limits` library."""

from __future__ import annotations

import limits
from limits import RateLimitItem as Rate

__all__ = ["Rate", "parse_rate"]

# Counts are kept for two windows. What is to be slower than this is a quota, and belongs in a database.
_LONGEST = 86_400
_MOST = 1_000_000_000


def parse_rate(text: str) -> Rate | None:
    """The rate that `text` says, or None for `0`, which is no limit. Raises `ValueError`."""
    if text == "0":
        return None
    [rate] = limits.parse_many(text)  # it takes several at once, too
    if not (0 < rate.amount <= _MOST and 0 < rate.get_expiry() <= _LONGEST):
        raise ValueError
    return rate
