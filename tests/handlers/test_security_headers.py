"""What every response tells a browser, whoever has made it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re

import pytest

from handlers.route import Route
from handlers.security_headers import HEADERS
from server.routes import ROUTES
from storage.windows import Windows
from tests.api import Client, new_conversation
from tests.raw import Answer, ask, send
from tests.sse_reader import SseReader

SET_BY_ROUTES = {"Cache-Control", "Content-Security-Policy"}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two: nothing here depends on which."""
    return sqlite_url


def assert_guarded(answer: Answer, **said: str) -> None:
    """It carries each header once, as it always is; `said` are those that its route says itself."""
    own = {name.replace("_", "-"): value for name, value in said.items()}
    for name, value in HEADERS.items():
        assert answer.one(name) == own.get(name, value), name
    assert answer.one("Server") == "swarm"
    assert answer.one("X-Powered-By") is None
    assert answer.one("X-Request-ID")


async def _path(client: Client, route: Route) -> str:
    """The route's path to something that is there."""
    conversation_id = await new_conversation(client)
    posted = await client.post(
        f"/api/conversations/{conversation_id}/messages", json={"role": "user", "content": "here"}
    )
    message_id = (await posted.json())["id"]
    key = await client.post("/api/keys", json={"name": "here", "scopes": ["read"]})
    key_id = (await key.json())["id"]
    return route.path.format(
        conversation_id=conversation_id, message_id=message_id, agent_id="bug_01", key_id=key_id, kind="not-found"
    )


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
async def test_every_route_s_every_answer_carries_them(client: Client, route: Route) -> None:
    path = await _path(client, route)
    for method in route.methods:
        got = await ask(client, f"{method} {path}")
        assert (got.status < 400) != (route.body is not None or got.status in {409, 422}), got
        assert len({name for name, _ in got.fields}) == len(got.fields), "none comes twice"
        own = {name.replace("-", "_"): got.one(name) or "" for name in SET_BY_ROUTES if got.status < 400}
        assert_guarded(got, **own)
        assert "frame-ancestors 'none'" in (got.one("Content-Security-Policy") or "")
        assert got.one("Cache-Control")
        refused = await ask(client, f"{method} {path}?colour=red")
        assert refused.status == 422
        assert_guarded(refused)
    assert_guarded(await ask(client, f"TRACE {path}"))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 400),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET /%zz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"PUT /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nConnection: close\r\n\r\n", 417),
        (b"GET /health HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", 421),
        (b"GET /health HTTP/1.0\r\n\r\n", 421),
        (b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (
            (
                b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nXX\r\n"
            ),
            400,
        ),
    ],
)
async def test_so_does_what_no_route_answers(client: Client, request_bytes: bytes, status: int) -> None:
    answer = await send(client, request_bytes)
    assert answer.status == status
    assert_guarded(answer)


@pytest.mark.parametrize("environment", [{"SWARM_HEAD_TIMEOUT": "0.1"}])
async def test_so_does_the_answer_to_a_head_that_never_ends(client: Client) -> None:
    answer = await send(client, b"GET /health HTTP/1.1\r\n")
    assert answer.status == 408
    assert_guarded(answer)


async def test_so_does_a_fault_of_the_server(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation_id = await new_conversation(client)

    async def fail(*arguments: object, **options: object) -> None:
        raise ValueError

    monkeypatch.setattr(Windows, "read", fail)
    answer = await ask(client, f"GET /api/conversations/{conversation_id}/messages")
    assert answer.status == 500
    assert_guarded(answer)


async def test_so_does_what_has_not_changed_and_its_caching_stays_as_it_was_said(client: Client) -> None:
    path = f"/api/conversations/{await new_conversation(client)}/messages"
    first = await ask(client, f"GET {path}")
    assert first.one("Cache-Control") == "private, no-cache"
    fresh = await ask(client, f"GET {path}", f"If-None-Match: {first.one('ETag')}")
    assert fresh.status == 304
    assert_guarded(fresh, Cache_Control="private, no-cache")


@pytest.mark.parametrize("environment", [{"SWARM_STREAMS": "1"}])
@pytest.mark.parametrize("full", [False, True])
async def test_so_do_streams(client: Client, full: bool) -> None:
    assert client.port is not None
    for path in ("/api/events", f"/api/conversations/{await new_conversation(client)}/events"):
        async with SseReader(client.host, client.port, path) if full else contextlib.nullcontext() as reader:
            if reader is not None:
                await reader.until("ready")
            answer = await ask(client, f"GET {path}")
            assert answer.one("Content-Length") if full else answer.one("Transfer-Encoding")
        assert answer.one("Content-Type") == "text/event-stream"
        assert_guarded(answer, Cache_Control="no-cache, no-transform")


async def test_the_page_may_use_its_own_style_and_nothing_else(client: Client) -> None:
    answer = await ask(client, "GET /docs")
    policy = answer.one("Content-Security-Policy") or ""
    page = answer.body.decode()
    [style] = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert not re.search(r"<[^>]* (style|on[a-z]+)=", page), "an attribute would need another permission"


@pytest.mark.parametrize(
    ("environment", "secure"), [({"SWARM_TRUSTED_PROXIES": "127.0.0.1"}, True), ({}, False)], ids=["proxy", "anybody"]
)
async def test_https_is_insisted_on_where_a_proxy_of_ours_says_that_it_was_used(client: Client, secure: bool) -> None:
    conversation_id = await new_conversation(client)
    for path in ("/api/agents", "/nowhere", "/metrics", f"/api/conversations/{conversation_id}/events"):
        answer = await ask(client, f"GET {path}", "X-Forwarded-Proto: https")
        assert answer.one("Strict-Transport-Security") == ("max-age=31536000" if secure else None)
        assert (await ask(client, f"GET {path}", "X-Forwarded-Proto: http")).one("Strict-Transport-Security") is None
