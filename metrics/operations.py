"""The seam through which every database operation is timed."""

from __future__ import annotations

from typing import Protocol


class OperationObserver(Protocol):
    """Is told of each database operation once, when it has ended."""

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        """`operation` is a name from the code, never user data; `error` is the class that ended it, or None."""


class Observers:
    """Tells each of several observers."""

    def __init__(self, *observers: OperationObserver) -> None:
        self._observers = observers

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        for observer in self._observers:
            observer.observe(operation, seconds, error)


class Unobserved:
    """An observer that looks away: for admin commands and tests."""

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        return
