"""What credentials there are."""

from __future__ import annotations

from dataclasses import dataclass, field

# As many characters as 128 random bits have in hexadecimal. Whoever sets a shorter one has not drawn it at random.
LEAST_SECRET = 32


@dataclass(frozen=True)
class AuthConfig:
    """Times in seconds."""

    bootstrap_key: str | None = field(default=None, repr=False)
    required: bool = False  # also where the only keys are those that were made by command
    session_life: float = 12 * 3_600.0  # unused for so long, it ends
    session_most: float = 30 * 86_400.0  # and after so long in any case
    ticket_life: float = 120.0
    recheck: float = 15.0  # what was good is looked at again after so long; streams as well
