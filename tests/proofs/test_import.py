"""The transcript: 15,345 real messages in 28 languages, imported by one request and read back."""

import json
import random
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests import proof
from tests.transcript import ndjson, transcript

NDJSON = {"Content-Type": "application/x-ndjson"}
FIELDS = ("role", "agent_id", "content", "metadata")

Client = TestClient[Any, Any]


async def _conversation(client: Client) -> str:
    made = await client.post("/api/conversations", json={"title": "transcript"})
    return f"/api/conversations/{(await made.json())['id']}/messages"


async def _window(client: Client, path: str, query: str) -> Any:
    answer = await client.get(f"{path}?limit=50&{query}")
    assert answer.status == 200, await answer.text()
    return await answer.json()


def _same(items: list[dict[str, Any]], rows: list[dict[str, Any]]) -> bool:
    wanted = [{name: row.get(name) for name in FIELDS} for row in rows]
    return [{name: item[name] for name in FIELDS} for item in items] == wanted


@pytest.mark.proof
async def test_the_transcript_is_imported_by_one_request_and_reads_back_the_same_from_anywhere(
    client: Client, database_url: str
) -> None:
    rows = list(transcript())
    path = await _conversation(client)
    answer = await client.post(path, data=ndjson(rows), headers=NDJSON)
    assert answer.status == 200, await answer.text()
    total = len(rows)
    assert await answer.json() == {"accepted": total, "first_position": 1, "last_position": total, "as_of": total}

    forwards: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        window = await _window(client, path, f"after={after}")
        forwards += window["items"]
        after = window["next"]
    assert [item["position"] for item in forwards] == list(range(1, total + 1))
    assert _same(forwards, rows)

    backwards: list[dict[str, Any]] = []
    window = await _window(client, path, "")
    while window["items"]:
        backwards = window["items"] + backwards
        if window["previous"] is None:
            break
        window = await _window(client, path, f"before={window['previous']}")
    assert backwards == forwards

    for _ in range(proof.count(100, 2_000)):
        at = random.randint(1, total)
        window = await _window(client, path, f"around={at}")
        first = window["items"][0]["position"]
        assert first <= at <= window["items"][-1]["position"]
        assert window["items"] == forwards[first - 1 : first + 49]
        assert (window["total"], window["as_of"]) == (total, total)
    database = database_url.partition(":")[0]
    proof.record("transcript imported, read from both ends and by jumps", database, f"{total} messages", "all the same")


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "with a key"])
async def test_a_bad_line_is_named_and_the_import_goes_on_from_there_when_mended(client: Client, keyed: bool) -> None:
    rows = list(transcript())[:2_000]
    bad = 1_234  # its line
    path = await _conversation(client)
    lines = ndjson(rows).splitlines(keepends=True)
    broken = [*lines[: bad - 1], b'{"role": "user", "content": 7}\n', *lines[bad:]]
    headers = NDJSON | ({"Idempotency-Key": "import-1"} if keyed else {})
    answer = await client.post(path, data=b"".join(broken), headers=headers)
    problem = await answer.json()
    assert answer.status == 422
    assert (problem["line"], problem["accepted"]) == (bad, bad - 1)
    assert problem["errors"][0]["pointer"] == "/content"
    assert (await _window(client, path, ""))["total"] == bad - 1

    # With a key the whole file may come again; without one, only what is not there yet.
    rest = lines if keyed else lines[bad - 1 :]
    answer = await client.post(path, data=b"".join(rest), headers=headers)
    result = await answer.json()
    assert answer.status == 200, result
    assert result["last_position"] == len(rows)
    assert result["accepted"] == len(rest)
    items: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        window = await _window(client, path, f"after={after}")
        items += window["items"]
        after = window["next"]
    assert _same(items, rows)

    if keyed:
        again = await client.post(path, data=b"".join(lines), headers=headers)
        assert (again.status, await again.json()) == (200, result)
        other = [json.dumps({"role": "user", "content": "other"}).encode() + b"\n", *lines[1:]]
        refused = await client.post(path, data=b"".join(other), headers=headers)
        assert refused.status == 422
        assert (await refused.json())["errors"][0]["header"] == "Idempotency-Key"
        assert (await _window(client, path, ""))["total"] == len(rows)


@pytest.mark.parametrize(
    ("line", "pointer"),
    [
        (b"{", None),
        (b'{"role": "agent", "content": "x"}', "/agent_id"),
        (b'{"role": "agent", "content": "x", "agent_id": "nobody"}', "/agent_id"),
        (b'{"role": "user", "content": "\\u0000"}', "/content"),
        (b'{"role": "user", "content": "\\ud800"}', "/content"),
        (b'{"role": "user", "content": "x", "position": 3}', "/position"),
        (b'{"role": "user", "content": "\xff"}', None),
        (b'{"role": "user", "content": "' + b"x" * 9_000_000 + b'"}', None),
    ],
    ids=["cut", "no agent", "unknown agent", "NUL", "lone surrogate", "unknown field", "not UTF-8", "too long"],
)
async def test_whatever_is_wrong_with_a_line_the_lines_before_it_are_stored(
    client: Client, line: bytes, pointer: str | None
) -> None:
    path = await _conversation(client)
    good = b'{"role": "user", "content": "good"}\n'
    answer = await client.post(path, data=good + b"\n" + good + line + b"\n" + good, headers=NDJSON)
    problem = await answer.json()
    assert answer.status == 422, problem
    assert (problem["line"], problem["accepted"]) == (4, 2)
    assert problem["detail"].startswith("Line 4: ")
    assert "body" not in problem["detail"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer
    assert (await _window(client, path, ""))["total"] == 2


async def test_an_import_of_nothing_stores_nothing(client: Client) -> None:
    path = await _conversation(client)
    answer = await client.post(path, data=b"\n\n", headers=NDJSON)
    assert await answer.json() == {"accepted": 0, "first_position": None, "last_position": None, "as_of": 0}


async def test_an_import_into_no_conversation_is_not_found(client: Client) -> None:
    path = "/api/conversations/01a20866-be7a-7520-b2b2-05177c225313/messages"
    answer = await client.post(path, data=b'{"role": "user", "content": "x"}\n', headers=NDJSON)
    assert answer.status == 404


async def test_a_line_may_arrive_in_any_pieces(client: Client) -> None:
    path = await _conversation(client)
    rows = [{"role": "user", "content": f"öß😀 {n}"} for n in range(20)]
    body = ndjson(rows)

    async def dripping() -> Any:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    answer = await client.post(path, data=dripping(), headers=NDJSON)
    assert (await answer.json())["accepted"] == 20
    assert _same((await _window(client, path, "from=1"))["items"], [row | {"metadata": {}} for row in rows])


async def test_the_same_import_twice_at_once_under_one_key_is_stored_once(client: Client) -> None:
    import asyncio

    path = await _conversation(client)
    rows = [{"role": "user", "content": f"line {n}"} for n in range(3_000)]
    headers = NDJSON | {"Idempotency-Key": "twice"}
    answers = await asyncio.gather(*[client.post(path, data=ndjson(rows), headers=headers) for _ in range(3)])
    results = [await answer.json() for answer in answers]
    assert [answer.status for answer in answers] == [200] * 3, results
    assert results[0] == results[1] == results[2]
    window = await _window(client, path, "")
    assert (window["total"], window["as_of"]) == (3_000, 3_000)
