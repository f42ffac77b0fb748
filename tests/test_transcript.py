"""The talk that other tests import is all there, and the same each time."""

import hashlib
import json
from typing import Any

import pytest

from tests.transcript import ndjson, transcript


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(transcript())


def test_it_holds_every_message(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 15_345
    assert sum(row["role"] == "user" for row in rows) == 6_348
    assert sum(row["role"] == "agent" for row in rows) == 8_997


def test_users_have_no_agent_and_agents_are_the_shipped_ones(rows: list[dict[str, Any]]) -> None:
    assert not any("agent_id" in row for row in rows if row["role"] == "user")
    agents = {row["agent_id"] for row in rows if row["role"] == "agent"}
    assert agents == {"product_01", "coding_01", "bug_01", "general_01"}


def test_each_topic_has_one_agent(rows: list[dict[str, Any]]) -> None:
    pairs = {(row["metadata"]["topic"], row["agent_id"]) for row in rows if row["role"] == "agent"}
    assert len(pairs) == len({topic for topic, _ in pairs}) == 39


def test_it_speaks_28_languages(rows: list[dict[str, Any]]) -> None:
    assert len({row["metadata"]["language"] for row in rows}) >= 28


def test_no_message_is_empty(rows: list[dict[str, Any]]) -> None:
    assert all(isinstance(row["content"], str) and row["content"] for row in rows)


def test_positions_are_the_same_in_every_reading(rows: list[dict[str, Any]]) -> None:
    assert list(transcript()) == rows


def test_its_bytes_are_those_that_figures_were_measured_with(rows: list[dict[str, Any]]) -> None:
    assert (
        hashlib.sha256(ndjson(rows)).hexdigest() == "165562027fb7a73c79c2a5705d097374718c27d7ccfdaa94547003c4007bfe03"
    )


def test_ndjson_is_one_object_a_line_in_utf_8(rows: list[dict[str, Any]]) -> None:
    lines = ndjson(rows[:100]).split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == rows[:100]
