"""A reader that trusts the stream, and says where it could not."""

import json
from typing import Any

from tests.assembly import Assembly, sha256


def take(assembly: Assembly, event: str, event_id: str | None = None, **payload: Any) -> None:
    assembly.apply(event, json.dumps(payload), event_id or f"{payload.get('seq', '')}@e")


def message(content: str, status: str = "complete") -> dict[str, Any]:
    return {"position": 1, "content": content, "status": status, "sha256": sha256(content)}


def test_deltas_are_appended_by_offset_in_utf_16_and_verified_at_the_end() -> None:
    assembly = Assembly()
    take(assembly, "message.created", seq=1, message=message("", "streaming"))
    take(assembly, "message.delta", seq=2, position=1, offset=0, text="🚀")
    take(assembly, "message.delta", seq=3, position=1, offset=2, text="!")
    assert assembly.messages[1]["content"] == "🚀!"
    take(assembly, "message.completed", seq=4, message=message("🚀!"))
    take(assembly, "ready", "4@e", as_of=4)
    assert (assembly.seqs, assembly.deltas, assembly.faults) == ([1, 2, 3, 4], 2, [])
    assert assembly.messages == {1: message("🚀!")}


def test_a_delta_that_does_not_continue_the_text_is_a_fault() -> None:
    assembly = Assembly()
    take(assembly, "message.delta", seq=1, position=1, offset=0, text="x")
    take(assembly, "message.created", seq=2, message=message("", "streaming"))
    take(assembly, "message.delta", seq=3, position=1, offset=1, text="x")
    assert len(assembly.faults) == 2


def test_a_completed_text_that_is_not_the_sum_of_its_deltas_is_a_fault() -> None:
    assembly = Assembly()
    take(assembly, "message.created", seq=1, message=message("", "streaming"))
    take(assembly, "message.completed", seq=2, message=message("lost"))
    assert len(assembly.faults) == 1


def test_a_reset_clears_what_is_held() -> None:
    assembly = Assembly()
    take(assembly, "message.created", seq=1, message=message("a"))
    take(assembly, "reset", "", reason="epoch", as_of=1)
    assert assembly.messages == {}
    assert assembly.faults == ["reset: epoch"]


def test_an_id_that_is_not_the_event_s_own_is_a_fault() -> None:
    assembly = Assembly()
    take(assembly, "message.created", "1@e", seq=2, message=message("a"))
    assert len(assembly.faults) == 1
