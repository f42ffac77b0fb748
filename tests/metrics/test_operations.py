"""Several observers of the same operations."""

from metrics.operations import Observers


class _Notes:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, str | None]] = []

    def observe(self, operation: str, seconds: float, error: str | None) -> None:
        self.seen.append((operation, seconds, error))


def test_each_observer_is_told_of_each_operation() -> None:
    one, other = _Notes(), _Notes()
    Observers(one, other).observe("messages.get", 0.5, "TimeoutError")
    assert one.seen == other.seen == [("messages.get", 0.5, "TimeoutError")]
