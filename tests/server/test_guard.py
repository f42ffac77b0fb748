"""A server that asks nobody who they are, in reach of a browser that shows somebody else's page."""

from __future__ import annotations

import pytest

from handlers.route import Route
from server.guard import GUARD
from server.routes import ROUTES
from tests.api import Client
from tests.raw import ask, send

JSON = "Content-Type: application/json"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One of the two: nothing here depends on which."""
    return sqlite_url


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("LocalHost:8080", True),
        ("127.0.0.1", True),
        ("127.8.9.1:80", True),
        ("[::1]", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8080", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example#127.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("128.0.0.1", False),
        ("[::2]", False),
        ("::1", False),
        ("localhost:", False),
        ("localhost, evil.example", False),
        ("", False),
    ],
)
async def test_it_answers_to_names_of_this_machine_alone(client: Client, host: str, here: bool) -> None:
    answer = await ask(client, "GET /api/agents", host=host)
    assert answer.status == (200 if here else 421)
    assert (b'"/problems/misdirected"' in answer.body) is not here


async def test_it_answers_to_no_name_only_where_there_is_one(client: Client) -> None:
    """HTTP/1.0 knows requests without a name; with two of them, which one counts would be anybody's guess."""
    assert (await send(client, b"GET /api/agents HTTP/1.0\r\n\r\n")).status == 421
    twice = b"GET /api/agents HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert (await send(client, twice)).status in {400, 421}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
async def test_no_route_answers_to_another_name(client: Client, route: Route) -> None:
    for method in route.methods:
        assert (await ask(client, f"{method} {route.path}", host="evil.example")).status == 421


@pytest.mark.parametrize("route", [route for route in ROUTES if route.writes], ids=lambda route: str(route.name))
async def test_no_route_lets_another_site_s_page_write(client: Client, route: Route) -> None:
    for fields in (
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site", "Origin: http://localhost:3000"],
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin: https://localhost"],  # not the scheme by which it is reached
    ):
        answer = await ask(client, f"{route.method} {route.path}", *fields)
        assert answer.status == 403
        assert b'"/problems/cross-origin"' in answer.body


@pytest.mark.parametrize(
    "fields",
    [[], ["Sec-Fetch-Site: same-origin"], ["Sec-Fetch-Site: none"], ["Origin: http://localhost"]],
    ids=["a program", "its own page", "the user", "its own page, of an older browser"],
)
async def test_its_own_page_and_programs_write(client: Client, fields: list[str]) -> None:
    assert (await ask(client, "POST /api/conversations", JSON, *fields, body=b"{}")).status == 201


async def test_a_link_on_another_site_s_page_can_be_followed(client: Client) -> None:
    fields = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")
    assert (await ask(client, "GET /docs", *fields)).status == 200


async def test_the_names_of_proxies_do_not_count(client: Client) -> None:
    assert (await ask(client, "GET /api/agents", "X-Forwarded-Host: localhost", host="evil.example")).status == 421
    assert (await ask(client, "GET /api/agents", "X-Forwarded-Host: evil.example")).status == 200


@pytest.mark.parametrize("environment", [{"SWARM_ALLOW_UNAUTHENTICATED": "1"}])
async def test_where_that_is_somebody_else_s_business_all_names_do(client: Client) -> None:
    fields = ("Sec-Fetch-Site: cross-site", "Origin: https://elsewhere.example", JSON)
    answer = await ask(client, "POST /api/conversations", *fields, body=b"{}", host="swarm.example.com")
    assert answer.status == 201
    client.app[GUARD].confined = True
    assert (await ask(client, "GET /api/agents", host="swarm.example.com")).status == 421
