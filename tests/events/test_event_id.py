"""Ids of events."""

import pytest

from events.event_id import EventId, parse_event_id


def test_an_id_reads_as_it_was_written() -> None:
    assert parse_event_id(str(EventId(17, "k3"))) == EventId(17, "k3")


@pytest.mark.parametrize(
    "text", ["", "17", "17@", "@k3", "017@k3", "-1@k3", "17@K3", "17@k3 ", "1" * 17 + "@k3", "17@k3\n", "١٧@k3"]
)
def test_what_no_server_of_ours_has_issued_is_no_id(text: str) -> None:
    assert parse_event_id(text) is None
