"""Slow database operations are said in the log."""

from structlog.testing import capture_logs

from server.slow_operations import SlowOperations


def test_only_what_takes_as_long_as_the_threshold_is_logged() -> None:
    observer = SlowOperations(0.5)
    with capture_logs() as lines:
        observer.observe("messages.get", 0.499, None)
        observer.observe("messages.window", 0.5, "StorageUnavailable")
    assert [(line["operation"], line["error"]) for line in lines] == [("messages.window", "StorageUnavailable")]
