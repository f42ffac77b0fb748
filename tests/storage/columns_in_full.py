"""What versions before 0006 gave the group commit's function on PostgreSQL, for tests that call it as they did."""

from typing import Any

from storage.append import NewMessage


def in_full(messages: list[tuple[Any, ...]], events: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Each column with all its values; stands in for `storage.commit_postgresql._tables`."""
    return [
        *map(list, zip(*messages, strict=True) if messages else [()] * (3 + len(NewMessage.__struct_fields__))),
        *map(list, zip(*events, strict=True)),
    ]
