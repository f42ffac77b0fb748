"""Front ends of other origins: those that are listed read every answer, others none."""

from __future__ import annotations

import pytest

from handlers.route import Route
from server.origins import parse_origins
from server.routes import ROUTES
from storage.windows import Windows
from tests.api import Client, new_conversation
from tests.raw import Answer, ask

APP = "https://app.example.com"
LISTED = {"SWARM_CORS_ORIGINS": f"{APP}, http://localhost:5173"}
EXPOSED = {"ETag", "Link", "Location", "Retry-After", "X-Request-ID", "RateLimit", "RateLimit-Policy", "Swarm-Total"}
EXPOSED |= {"Swarm-As-Of", "Idempotency-Replayed", "WWW-Authenticate"}
SENT = {"Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "If-None-Match", "X-Request-ID"}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two: nothing here depends on which."""
    return sqlite_url


def said(answer: Answer) -> dict[str, str]:
    """What the answer says of other origins."""
    names = {name for name, _ in answer.fields if name.startswith("access-control-") or name == "vary"}
    return {name: answer.one(name) or "" for name in names}


def listed(text: str) -> set[str]:
    return set(text.split(", "))


def assert_shared(answer: Answer, origin: str = APP) -> None:
    shared = said(answer)
    assert listed(shared.pop("access-control-expose-headers")) >= EXPOSED
    assert shared == {"access-control-allow-origin": origin, "vary": "Origin"}


class TestListed:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return {**LISTED, "SWARM_STREAMS_PER_ADDRESS": "1"}

    @pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
    async def test_a_preflight_of_every_route_names_its_methods(self, client: Client, path: str) -> None:
        concrete = path.format(
            conversation_id="0" * 8 + "-0000-7000-8000-" + "0" * 12,
            message_id="0" * 8 + "-0000-7000-8000-" + "0" * 12,
            agent_id="bug_01",
            key_id="0" * 16,
            kind="x",
        )
        asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")
        answer = await ask(client, f"OPTIONS {concrete}", f"Origin: {APP}", *asked)
        assert (answer.status, answer.body) == (204, b"")
        allowed = said(answer)
        methods = {method for route in ROUTES if route.path == path for method in route.methods}
        assert listed(allowed.pop("access-control-allow-methods")) == methods
        assert listed(allowed.pop("access-control-allow-headers")) >= SENT
        assert int(allowed.pop("access-control-max-age")) > 0
        allowed.pop("access-control-expose-headers")
        assert allowed == {"access-control-allow-origin": APP, "vary": "Origin"}

    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null", f"{APP}:1"],
    )
    async def test_another_origin_is_told_nothing(self, client: Client, origin: str) -> None:
        asked = (f"Origin: {origin}", "Access-Control-Request-Method: POST")
        preflight = await ask(client, "OPTIONS /api/conversations", *asked)
        assert (preflight.status, said(preflight)) == (204, {"vary": "Origin"})
        for path in ("/api/agents", "/nowhere", "/metrics", "/api/events"):
            answer = await ask(client, f"GET {path}", f"Origin: {origin}")
            assert said(answer) == {"vary": "Origin"}

    async def test_what_is_asked_without_an_origin_is_kept_apart_by_caches(self, client: Client) -> None:
        for path in ("/api/agents", "/metrics", "/nowhere"):
            assert said(await ask(client, f"GET {path}")) == {"vary": "Origin"}

    @pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
    @pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "GET"], ids=lambda r: str(r.name))
    async def test_every_answer_can_be_read(self, client: Client, route: Route, origin: str) -> None:
        conversation_id = await new_conversation(client)
        path = route.path.format(
            conversation_id=conversation_id, message_id=conversation_id, agent_id="bug_01", key_id="0" * 16, kind="x"
        )
        assert_shared(await ask(client, f"GET {path}", f"Origin: {origin}"), origin)
        assert_shared(await ask(client, f"GET {path}?colour=red", f"Origin: {origin}"), origin)

    async def test_so_can_writes_and_what_goes_wrong(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        json = "Content-Type: application/json"
        made = await ask(client, "POST /api/conversations", f"Origin: {APP}", json, body=b"{}")
        assert made.status == 201
        assert_shared(made)
        for line, body, status in (
            ("POST /api/conversations", b"{", 400),
            ("GET /nowhere", b"", 404),
            ("PUT /api/conversations", b"", 405),
            ("OPTIONS /api/conversations", b"", 405),
            ("OPTIONS /nowhere", b"", 404),
            ("POST /api/conversations", b"[]", 422),
        ):
            answer = await ask(client, line, f"Origin: {APP}", json, body=body)
            assert answer.status == status
            assert_shared(answer)

        async def fail(*arguments: object, **options: object) -> None:
            raise ValueError

        monkeypatch.setattr(Windows, "read", fail)
        path = f"{made.one('Location')}/messages"
        answer = await ask(client, f"GET {path}", f"Origin: {APP}")
        assert answer.status == 500
        assert_shared(answer)

    async def test_a_stream_that_is_told_to_come_back_can_be_read(self, client: Client) -> None:
        async with client.get("/api/events") as one:
            assert one.status == 200
            refused = await ask(client, "GET /api/events", f"Origin: {APP}")
            assert refused.one("Content-Length"), "there is room for one"
            assert_shared(refused)

    async def test_credentials_are_not_invited(self, client: Client) -> None:
        answer = await ask(client, "GET /api/agents", f"Origin: {APP}", "Cookie: a=b")
        assert answer.one("Access-Control-Allow-Credentials") is None

    async def test_a_listed_origin_may_write_where_nobody_has_to_say_who_they_are(self, client: Client) -> None:
        fields = (f"Origin: {APP}", "Sec-Fetch-Site: cross-site", "Content-Type: application/json")
        assert (await ask(client, "POST /api/conversations", *fields, body=b"{}")).status == 201
        fields = ("Origin: https://evil.example", *fields[1:])
        assert (await ask(client, "POST /api/conversations", *fields, body=b"{}")).status == 403


class TestNotListed:
    async def test_no_answer_says_anything_of_origins(self, client: Client) -> None:
        for path in ("/api/agents", "/nowhere", "/metrics", "/api/events"):
            assert said(await ask(client, f"GET {path}", f"Origin: {APP}")) == {}

    async def test_options_is_a_method_that_no_path_knows(self, client: Client) -> None:
        answer = await ask(client, "OPTIONS /api/agents", f"Origin: {APP}", "Access-Control-Request-Method: GET")
        assert (answer.status, said(answer)) == (405, {})


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", set()),
        (APP, {APP}),
        (f"{APP} ,http://localhost:5173", {APP, "http://localhost:5173"}),
        ("HTTPS://App.Example.com:443", {APP}),
        ("http://[::1]:8000", {"http://[::1]:8000"}),
        ("http://a:80,http://a:443", {"http://a", "http://a:443"}),
    ],
)
def test_origins_are_kept_as_browsers_say_them(text: str, origins: set[str]) -> None:
    assert parse_origins(text) == origins


@pytest.mark.parametrize(
    "text",
    [
        f"{APP}/",
        "app.example.com",
        "null",
        f"{APP},",
        "https://*.example.com",
        "ftp://a",
        "https://a b",
        "https://é.com",
    ],
)
def test_what_is_no_origin_is_not_taken(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse_origins(text)
