"""The OpenAPI document says what serves."""

import re
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from agents.agent import Agent, AgentProfile
from events import vocabulary
from handlers import shapes
from handlers.docs_page import page
from handlers.kinds import KINDS
from handlers.openapi import document
from handlers.route import Route
from server import settings
from server.app import create_app
from server.routes import ROUTES
from storage import records
from tests.api import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def app(tmp_path: Path) -> web.Application:
    return create_app(settings.load({"DATABASE_URL": f"sqlite:///{tmp_path / 'unused.db'}"}))


async def test_the_document_is_valid(client: Client) -> None:
    served = await (await client.get("/openapi.json")).json()
    OpenAPIV31SpecValidator(served).validate()
    assert served == msgspec.to_builtins(document(ROUTES))


def test_every_registered_route_comes_from_a_declared_one(app: web.Application) -> None:
    registered = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    declared = {(method, route.path) for route in ROUTES for method in route.methods}
    assert registered == declared


def test_every_declared_route_is_described_with_its_problems() -> None:
    described = document(ROUTES)
    for route in ROUTES:
        operation = described["paths"][route.path][route.method.lower()]
        assert {str(kind.status) for kind in route.all_problems} <= set(operation["responses"])
        assert operation["summary"]
    identifiers = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("route", [route for route in ROUTES if route.example is not None], ids=lambda r: str(r.name))
def test_every_example_is_accepted(route: Route) -> None:
    msgspec.convert(route.example, route.body)


@pytest.mark.parametrize(
    ("described", "served"),
    [
        (shapes.Message, records.Message),
        (shapes.Conversation, records.Conversation),
    ],
)
def test_what_is_described_has_the_fields_of_what_is_served(
    described: type[msgspec.Struct], served: type[msgspec.Struct]
) -> None:
    assert described.__struct_fields__ == served.__struct_fields__


def test_an_agent_is_its_profile_and_an_id() -> None:
    assert Agent.__struct_fields__ == ("id", *AgentProfile.__struct_fields__)


async def test_the_page_is_one_file_that_loads_nothing(client: Client) -> None:
    response = await client.get("/docs")
    assert (response.status, response.content_type) == (200, "text/html")
    text = await response.text()
    assert text == page(document(ROUTES)).decode()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"<(script|link|img|iframe)|https?://|@import|url\(", text)
    for route in ROUTES:
        assert f"<code>{route.path}</code>" in text


async def test_every_link_of_the_page_leads_somewhere(client: Client) -> None:
    text = await (await client.get("/docs")).text()
    identifiers = re.findall(r'id="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(identifiers)


async def test_the_root_leads_to_the_page(client: Client) -> None:
    response = await client.get("/", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, "/docs")
    assert (await client.get("/")).status == 200


async def test_a_problem_is_explained_at_its_type(client: Client) -> None:
    text = await (await client.get("/docs")).text()
    for kind in KINDS:
        response = await client.get(kind.type, allow_redirects=False)
        assert response.status == 303
        anchor = response.headers["Location"].partition("#")[2]
        assert f'id="{anchor}"' in text
    assert (await client.get("/problems/of-nobody")).status == 404


def test_every_problem_is_in_the_documentation() -> None:
    documented = (ROOT / "docs" / "problems.md").read_text()
    for kind in KINDS:
        assert f"| `{kind.type}` | {kind.status} | {kind.title} | {kind.meaning} |" in documented


def test_every_event_that_is_sent_is_described_with_its_data() -> None:
    sent = {value for name, value in vars(vocabulary).items() if name.isupper() and isinstance(value, str)}
    described = document(ROUTES)["paths"]["/api/conversations/{conversation_id}/events"]["get"]["x-events"]
    assert {event["event"] for event in described} == sent | {"ready", "reset", "drain"}
    assert all(event["data"] and event["description"] for event in described)
