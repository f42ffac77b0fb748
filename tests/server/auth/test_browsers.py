"""What pages can do in a real browser: those of our own origin, of an origin that is listed, and of attackers.

`localhost` and `127.0.0.1` are two sites to a browser; two ports of `localhost` are two origins of one site.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from sqlalchemy import text

from handlers.resources import DATABASE, HUB
from server.routes import ROUTES
from tests.api import Client
from tests.conftest import serving
from tests.free_port import free_port

BOOTSTRAP = "b" * 40
_CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    _CHROMIUM is None and "SWARM_REQUIRE_CLIENTS" not in os.environ,
    reason="needs Chromium: on Debian and Ubuntu, apt-get install chromium",
)

# A page's script: what a request brought that the script can read, or the name of the error that it got.
_FETCH = """async ([url, options]) => {
    try {
        const answer = await fetch(url, options);
        return {status: answer.status, body: await answer.text(), headers: Object.fromEntries(answer.headers)};
    } catch (error) { return {error: error.name}; }
}"""
# The first events of a stream, or that it was closed for good.
_STREAM = """([url, wanted]) => new Promise((resolve) => {
    const source = new EventSource(url), seen = [];
    for (const kind of ['ready', 'drain', 'message.created']) source.addEventListener(kind, (event) => {
        seen.push([event.type, event.data]);
        if (seen.length >= wanted) { source.close(); resolve(seen); }
    });
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve([...seen, 'closed']); };
})"""
# Everything that a page can have a browser send without being asked for leave, and what needs leave as well.
_ATTACK = """async ([url, method, body]) => {
    const quiet = (promise) => promise.then((answer) => answer.type, (error) => error.name);
    const results = [];
    for (const mode of ['no-cors', 'cors']) for (const type of ['text/plain', 'application/json']) results.push(
        await quiet(fetch(url, {method, mode, credentials: 'include', body: method === 'DELETE' ? undefined : body,
                                headers: {'Content-Type': type}})));
    navigator.sendBeacon(url, new Blob([body], {type: 'text/plain'}));
    const image = new Image();
    await new Promise((resolve) => { image.onload = image.onerror = resolve; image.src = url; });
    for (const enctype of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']) {
        const frame = document.createElement('iframe'), form = document.createElement('form');
        frame.name = `target ${Math.random()}`;
        const input = document.createElement('input');
        [input.name, input.value] = [body.slice(0, -1), '}'];  // in text/plain: nearly the JSON
        Object.assign(form, {method: 'POST', action: url, enctype, target: frame.name});
        form.append(input);
        document.body.append(frame, form);
        await new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 2000); form.submit(); });
    }
    return results;
}"""


@dataclass
class Chromium:
    """A browser; `site` is a page of another origin, on a host and a port of its own."""

    browser: Browser
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def site(self, context: BrowserContext, host: str, port: int | None = None) -> Page:
        async def page(request: web.Request) -> web.Response:
            return web.Response(text="<!doctype html><body>", content_type="text/html")

        app = web.Application()
        app.router.add_get("/", page)
        server = TestServer(app, port=port)
        await self.stack.enter_async_context(server)
        opened = await context.new_page()
        await opened.goto(f"http://{host}:{server.port}/")
        return opened


@asynccontextmanager
async def _chromium(*arguments: str) -> AsyncIterator[Chromium]:
    # Its sandbox needs namespaces that root in a container does not have.
    options = [*arguments, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=options)
        found = Chromium(browser)
        async with found.stack:
            yield found
        await browser.close()


async def _ask(page: Page, url: str, method: str = "GET", body: Any = None, **headers: str) -> dict[str, Any]:
    options: dict[str, Any] = {"method": method, "headers": headers}
    if body is not None:
        options["body"] = body
        options["headers"]["Content-Type"] = "application/json"
    answer: dict[str, Any] = await page.evaluate(_FETCH, [url, options])
    return answer


async def _own_page(context: BrowserContext, client: Client) -> Page:
    """A page of our own origin; what we serve allows no scripts, so the context must be told to let them run."""
    page = await context.new_page()
    await page.goto(f"http://localhost:{client.port}/docs")
    return page


async def _rows(client: Client) -> list[str]:
    async with client.app[DATABASE].transaction("test.look") as connection:
        return [
            str(tuple(row))
            for table in ("conversations", "messages", "events", "agents", "audit")
            for row in (await connection.execute(text(f"SELECT * FROM {table}"))).all()
        ]


async def test_a_session_is_what_a_page_of_ours_has_and_no_script_sees(sqlite_url: str) -> None:
    environment = {"DATABASE_URL": sqlite_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP}
    async with serving(environment) as client, _chromium() as chromium:
        context = await chromium.browser.new_context(bypass_csp=True)
        page = await _own_page(context, client)
        assert (await _ask(page, "/api/conversations"))["status"] == 401
        assert (await _ask(page, "/api/session", "POST", Authorization=f"Bearer {BOOTSTRAP}"))["status"] == 201
        [cookie] = await context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (
            *("__Host-swarm", True, True, "Strict"),
            "/",
        )
        assert await page.evaluate("document.cookie") == ""
        assert (await _ask(page, "/api/conversations", "POST", "{}"))["status"] == 201
        streaming = await _own_page(context, client)
        ends = asyncio.create_task(streaming.evaluate(_STREAM, ["/api/events", 2]))
        async with asyncio.timeout(20):
            while client.app[HUB].streams == 0:
                await asyncio.sleep(0.02)
        assert (await _ask(page, "/api/session", "DELETE"))["status"] == 204
        assert [event[0] for event in await ends][-1] == "drain"
        assert await context.cookies() == []
        assert (await _ask(page, "/api/conversations"))["status"] == 401
        assert await page.evaluate(_STREAM, ["/api/events", 1]) == ["closed"]


@pytest.mark.parametrize("is_open", [False, True], ids=["with a session", "on an open server"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["another site", "another origin of the site"])
async def test_no_page_of_others_writes(sqlite_url: str, host: str, is_open: bool) -> None:
    environment = {"DATABASE_URL": sqlite_url} | ({} if is_open else {"SWARM_BOOTSTRAP_KEY": BOOTSTRAP})
    async with serving(environment) as client, _chromium() as chromium:
        context = await chromium.browser.new_context(bypass_csp=True)
        page = await _own_page(context, client)
        if not is_open:
            await _ask(page, "/api/session", "POST", Authorization=f"Bearer {BOOTSTRAP}")
        made = await _ask(page, "/api/conversations", "POST", "{}")
        assert made["status"] == 201  # a page of ours does write
        conversation = made["headers"]["location"].rpartition("/")[2]
        posted = await _ask(
            page, f"/api/conversations/{conversation}/messages", "POST", '{"role":"user","content":"x"}'
        )
        message = posted["body"].partition('"id":"')[2].partition('"')[0]
        before = await _rows(client)
        attacker = await chromium.site(context, host)
        for route in (route for route in ROUTES if route.writes):
            path = route.path.format(
                conversation_id=conversation, message_id=message, agent_id="general_01", key_id="0" * 16
            )
            body = '{"role":"user","content":"evil","name":"evil","scopes":["admin"]}'
            said = await attacker.evaluate(_ATTACK, [f"http://localhost:{client.port}{path}", route.method, body])
            # Nothing that is answered can be read: in the mode without CORS an answer is opaque, in the other an error.
            assert set(said) <= {"opaque", "TypeError"}, (route.name, said)
        assert await _rows(client) == before
        if not is_open:
            assert [cookie["name"] for cookie in await context.cookies()] == ["__Host-swarm"]  # nobody was logged out


async def test_a_name_that_was_made_to_lead_here_does_not_reach_an_open_server(sqlite_url: str) -> None:
    async with (
        serving({"DATABASE_URL": sqlite_url}) as client,
        _chromium("--host-resolver-rules=MAP evil.test 127.0.0.1") as chromium,
    ):
        page = await chromium.browser.new_page()
        for path in ("/api/conversations", "/metrics", "/docs"):
            answer = await page.goto(f"http://evil.test:{client.port}{path}")
            assert answer is not None
            assert answer.status == 421


async def test_a_listed_origin_reads_writes_and_streams_and_others_do_not(sqlite_url: str) -> None:
    port = free_port()
    listed = f"http://localhost:{port}"
    environment = {"DATABASE_URL": sqlite_url, "SWARM_BOOTSTRAP_KEY": BOOTSTRAP, "SWARM_CORS_ORIGINS": listed}
    async with serving(environment) as client, _chromium() as chromium:
        api = f"http://localhost:{client.port}/api"
        key = {"Authorization": f"Bearer {BOOTSTRAP}"}
        context = await chromium.browser.new_context()
        friend = await chromium.site(context, "localhost", port)
        made = await _ask(friend, f"{api}/conversations", "POST", "{}", **key)
        assert made["status"] == 201
        assert {"x-request-id", "location"} <= set(made["headers"])
        conversation = made["headers"]["location"].rpartition("/")[2]
        path = f"{api}/conversations/{conversation}"
        posted = await _ask(friend, f"{path}/messages", "POST", '{"role":"user","content":"x"}', **key)
        assert posted["status"] == 201
        window = await _ask(friend, f"{path}/messages", **key)
        assert (window["status"], "etag" in window["headers"]) == (200, True)
        assert (await _ask(friend, path, "PATCH", '{"title":"new"}', **key))["status"] == 200
        for bad, status in ((f"{api}/conversations/nothing", 404), (f"{path}/messages?limit=x", 422)):
            problem = await _ask(friend, bad, **key)
            assert (problem["status"], "/problems/" in problem["body"]) == (status, True)
        assert (await _ask(friend, f"{api}/conversations"))["status"] == 401
        given = await _ask(friend, f"{api}/tickets", "POST", f'{{"conversations":["{conversation}"]}}', **key)
        ticket = given["body"].partition('"ticket":"')[2].partition('"')[0]
        events = await friend.evaluate(_STREAM, [f"{path}/events?after=0&ticket={ticket}", 2])
        assert [event[0] for event in events] == ["message.created", "ready"]
        assert await friend.evaluate(_STREAM, [f"{api}/events?ticket={ticket}", 1]) == ["closed"]
        assert (await _ask(friend, path, "DELETE", **key))["status"] == 204

        before = await _rows(client)
        for host in ("localhost", "127.0.0.1"):
            stranger = await chromium.site(context, host)
            for method, body in (("GET", None), ("POST", "{}")):
                assert await _ask(stranger, f"{api}/conversations", method, body, **key) == {"error": "TypeError"}
            assert await _ask(stranger, f"{api}/conversations") == {"error": "TypeError"}
            assert await stranger.evaluate(_STREAM, [f"{api}/events?ticket={ticket}", 1]) == ["closed"]
        # A page without an origin, in a frame of the listed one.
        frame = """([url, key]) => new Promise((resolve) => {
            const frame = document.createElement('iframe');
            frame.sandbox = 'allow-scripts';
            frame.srcdoc = `<script>
                const say = (what) => parent.postMessage(what, '*');
                fetch(${JSON.stringify(url)}, {headers: {Authorization: ${JSON.stringify(key)}}})
                    .then((answer) => say(answer.status), (error) => say(error.name))
                <${'/'}script>`;
            addEventListener('message', (event) => resolve(event.data));
            document.body.append(frame);
        })"""
        assert await friend.evaluate(frame, [f"{api}/conversations", key["Authorization"]]) == "TypeError"
        assert await _rows(client) == before


async def test_documentation_is_shown_as_it_is_and_in_no_frame(sqlite_url: str) -> None:
    async with serving({"DATABASE_URL": sqlite_url}) as client, _chromium() as chromium:
        context = await chromium.browser.new_context()
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"http://localhost:{client.port}/docs")
        assert complaints == []
        assert await page.evaluate("getComputedStyle(document.body).fontFamily") != "Times New Roman"
        framing = await chromium.site(context, "localhost")
        await framing.evaluate(
            """(url) => new Promise((resolve) => {
                const frame = document.createElement('iframe');
                [frame.src, frame.onload] = [url, resolve];
                document.body.append(frame);
            })""",
            f"http://localhost:{client.port}/docs",
        )
        assert framing.frames[1].url == "chrome-error://chromewebdata/"
