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
    recheck: float = 15.0  # what was good is looked at again after so long; streams as well
