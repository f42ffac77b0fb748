"""Secrets pushed into every place where one can come in: they come out in no log line, no answer, no figure, no row."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
import redis
from joserfc.jwk import OctKey

from server import settings
from server.setting import SettingError
from tests.canaries import Canaries, say, stored
from tests.faults.deployment import Deployment
from tests.faults.follower import until
from tests.free_port import free_port
from tests.server.auth.issuer import signed
from tests.server_process import ROOT, ServerProcess
from tests.valkey_server import ValkeyServer

_READY = b"event: ready"


class Running(NamedTuple):
    """A server. `log` is where all that it has logged is when it has ended."""

    port: int
    log: Path
    environment: dict[str, str]
    bootstrap: str

    async def ask(
        self, line: str, *fields: str, body: bytes | None = None, good: bool = True, until: bytes | None = None
    ) -> bytes:
        """The answer to a request of one who has the bootstrap key, or, when not `good`, of nobody."""
        lengths: tuple[str, ...] = () if body is None else (f"Content-Length: {len(body)}",)
        if body is not None and not any(field.lower().startswith("content-type") for field in fields):
            lengths += ("Content-Type: application/json",)
        whose = (f"Authorization: Bearer {self.bootstrap}",) if good else ()
        hosts = () if any(field.startswith("Host:") for field in fields) else ("Host: localhost",)
        head = "\r\n".join((f"{line} HTTP/1.1", *hosts, *whose, *fields, *lengths, "Connection: close", "", ""))
        return await say(self.port, head.encode("utf-8", "surrogateescape") + (body or b""), until=until)

    async def made(self, path: str, body: dict[str, Any] | None = None, *fields: str) -> tuple[dict[str, Any], bytes]:
        """What a POST has made, and the whole answer."""
        content = None if body is None else json.dumps(body).encode()
        answer = await self.ask(f"POST {path}", *fields, body=content)
        assert status(answer) == 201, answer
        made: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return made, answer


def status(answer: bytes) -> int:
    """0 where there is no answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


@asynccontextmanager
async def running(how: str, url: str, canaries: Canaries, folder: Path, **more: str) -> AsyncIterator[Running]:
    """The server with every credential configured that there is, each of them a canary."""
    bootstrap = canaries.make("SWARM_BOOTSTRAP_KEY")
    environment = {
        "DATABASE_URL": url,
        "SWARM_BOOTSTRAP_KEY": bootstrap,
        "SWARM_JWT_SECRET": canaries.make("SWARM_JWT_SECRET"),
        "SWARM_JWT_AUDIENCE": "swarm",
        "SWARM_METRICS_TOKEN": canaries.make("SWARM_METRICS_TOKEN"),
        "SWARM_LOG_LEVEL": "DEBUG",
        "SWARM_SLOW_OPERATION": "0",  # all of them are logged
        "SWARM_RATE_LIMIT": "100000/minute",
        "SWARM_RATE_LIMIT_ADDRESS": "0",
        **more,
    }
    without_url: dict[str, Any] = {name: value for name, value in environment.items() if name != "DATABASE_URL"}
    log = folder / "log"
    if how == "gunicorn":
        async with Deployment(url, workers=1, **without_url) as deployment:
            yield Running(deployment.port, log, environment, bootstrap)
            await deployment.end()
            log.write_text(deployment.said())
        return
    server = ServerProcess(url, log=log, **without_url)
    await server.start()
    try:
        yield Running(server.port, log, environment, bootstrap)
    finally:
        await server.end(signal.SIGTERM)


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """The port of an issuer whose keys are what it was asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Try(NamedTuple):
    """A request with a canary in it, and the status of its answer (0: none comes). `own` are the places that are its
    own: the `answer` to it, the `log`, and `rows`."""

    request: Callable[[str], Any]
    status: int
    own: str = ""


def tries(server: Running, conversation: str) -> dict[str, Try]:
    """By where the canary is."""
    ask = server.ask
    one = f"/api/conversations/{conversation}"
    good = f"Authorization: Bearer {server.bootstrap}"

    def refused(*fields: str, line: str = "GET /api/conversations", status: int = 401) -> Try:
        return Try(
            lambda c: ask(line.replace("CANARY", c), *(f.replace("CANARY", c) for f in fields), good=False), status
        )

    def asked(line: str, *fields: str, body: str | None = None, status: int = 422, own: str = "") -> Try:
        def request(c: str) -> Any:
            content = None if body is None else body.replace("CANARY", c).encode("utf-8", "surrogateescape")
            return ask(line.replace("CANARY", c), *(f.replace("CANARY", c) for f in fields), body=content)

        return Try(request, status, own)

    def bytes_of(text: bytes, status: int, *, cut: bool = False) -> Try:
        return Try(lambda c: say(server.port, text.replace(b"CANARY", c.encode()), cut=cut), status)

    def basic(c: str) -> Any:
        return ask(
            "GET /api/agents", f"Authorization: Basic {base64.b64encode(f'me:{c}'.encode()).decode()}", good=False
        )

    posted, streamed = f"POST {one}/messages", f"GET {one}/events"
    head = b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + good.encode()
    key, session, ticket = (f"swarm_{kind}_{'0' * 16}_CANARY" for kind in ("key", "session", "ticket"))
    return {
        # In Authorization.
        "bearer": refused("Authorization: Bearer CANARY"),
        "bearer, key": refused(f"Authorization: Bearer {key}"),
        "bearer, session": refused(f"Authorization: Bearer {session}"),
        "bearer, ticket": refused(f"Authorization: Bearer {ticket}"),
        "bearer, of three parts": refused("Authorization: Bearer e30.e30.CANARY"),
        "bearer, token of another key": refused("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.CANARY"),
        "bearer, claims": refused("Authorization: Bearer eyJhbGciOiJSUzI1NiJ9.CANARY.e30", status=503),
        "bearer, blanks": refused("Authorization: Bearer  CANARY CANARY "),
        "no blank": refused("Authorization: BearerCANARY"),
        "no scheme": refused("Authorization: CANARY"),
        "basic": Try(basic, 401),
        "digest": refused('Authorization: Digest username="me", response="CANARY"'),
        "twice": refused(good, "Authorization: Bearer CANARY"),
        "twice, first": refused("Authorization: Bearer CANARY", good),
        "large": refused(f"Authorization: Bearer {'CANARY' * 120}"),
        "huge": refused(f"Authorization: Bearer {'CANARY' * 2_000}", status=400),
        "non-ASCII": refused("Authorization: Bearer CANARY\udcff\xe9"),
        "NUL": refused("Authorization: Bearer CANARY\0", status=400),
        "folded": refused("Authorization: Bearer", "  CANARY", status=400),
        "metrics": refused("Authorization: Bearer CANARY", line="GET /metrics"),
        "proxy": refused("Proxy-Authorization: Bearer CANARY"),
        "of a stream": refused("Authorization: Bearer CANARY", line=streamed),
        # In a cookie.
        "cookie": refused("Cookie: __Host-swarm=CANARY"),
        "cookie, session": refused(f"Cookie: __Host-swarm={session}"),
        "cookie, key": refused(f"Cookie: a=b; __Host-swarm={key}; c=d"),
        "cookie, twice": refused("Cookie: __Host-swarm=CANARY", "Cookie: __Host-swarm=CANARY"),
        "cookie, quoted": refused('Cookie: __Host-swarm="CANARY\\"; \\073"'),
        "cookie, malformed": refused("Cookie: CANARY; (CANARY)=CANARY; =;;, {CANARY"),
        "cookie, non-ASCII": refused("Cookie: __Host-swarm=CANARY\xff"),
        "cookie, write": refused(
            f"Cookie: __Host-swarm={session}",
            "Sec-Fetch-Site: same-origin",
            "Content-Length: 0",
            line="POST /api/conversations",
        ),
        "cookie, other origin": refused(
            f"Cookie: __Host-swarm={session}",
            "Origin: https://CANARY.example",
            "Content-Length: 0",
            line="DELETE /api/session",
            status=403,
        ),
        # A ticket.
        "ticket": refused(line=f"{streamed}?ticket=CANARY"),
        "ticket, well formed": refused(line=f"{streamed}?ticket={ticket}"),
        "ticket, key": refused(line=f"GET /api/events?ticket={key}"),
        "ticket, twice": refused(line=f"{streamed}?ticket=CANARY&ticket=CANARY"),
        "ticket, encoded": refused(line=f"{streamed}?tick%65t={ticket.replace('_', '%5F')}"),
        "ticket, too long": asked(f"{streamed}?ticket={'CANARY' * 10}"),
        "ticket, elsewhere": refused(line="GET /api/conversations?ticket=CANARY"),
        "ticket, elsewhere with a key": asked("GET /api/conversations?ticket=CANARY"),
        "ticket, of health": asked("GET /health/live?ticket=CANARY"),
        "ticket, of the documentation": asked("GET /docs?ticket=CANARY"),
        "ticket, nowhere": asked("GET /nowhere?ticket=CANARY", status=404),
        "ticket, behind a fragment": asked("GET /nowhere#CANARY?ticket=CANARY", status=404),
        "ticket, method": asked(f"TRACE {one}/events?ticket=CANARY", status=405),
        # In a path.
        "path, key": asked(f"GET /api/keys/{key}", status=404),
        "path, key to delete": asked(f"DELETE /api/keys/{key}", status=404),
        "path, encoded": asked(f"GET /api/keys/%73{key[1:]}", status=404),
        "path, agent": asked(f"PUT /api/agents/{key}", body="{}"),
        "path, token": asked("GET /api/conversations/e30.e30.CANARY/messages", status=404),
        "path, nowhere": asked("GET /CANARY", status=404),
        "path, query in it": asked(f"GET /api/events%3Fticket={ticket}", status=404),
        "path, of nobody": refused(line=f"GET /api/keys/{key}"),
        "path, method": asked(f"PATCH /api/keys/{key}", status=405),
        "whole address": asked("GET http://me:CANARY@localhost/nowhere", status=404),
        "another's address": asked("CONNECT CANARY.example:443", status=404),
        # In a query.
        "query, number": asked("GET /api/conversations?limit=CANARY"),
        "query, text": asked("GET /api/keys?cursor=CANARY"),
        "query, unknown": asked("GET /api/conversations?api_key=CANARY"),
        "query, name": asked("GET /api/conversations?CANARY=1", own="answer"),
        "query, place": asked(f"{streamed}?after=CANARY"),
        "query, places": asked("GET /api/events?conversations=CANARY/CANARY"),
        "query, broken": asked("GET /api/conversations?%zz=%CANARY;CANARY=%ff"),
        # In a body.
        "body, content": asked(posted, body='{"role": "user", "content": "CANARY"}', status=201, own="answer rows"),
        "body, metadata": asked(
            "POST /api/conversations", body='{"metadata": {"CANARY": "CANARY"}}', status=201, own="answer rows"
        ),
        "body, agent": asked(
            "PUT /api/agents/canary",
            body='{"name": "n", "role": "r", "system_prompt": "CANARY", "icon": "i"}',
            status=201,
            own="answer rows",
        ),
        "body, unknown field": asked(posted, body='{"role": "user", "content": "x", "api_key": "CANARY"}'),
        "body, field's name": asked(posted, body='{"role": "user", "CANARY": 1}', own="answer"),
        "body, type": asked(posted, body='{"role": "user", "content": ["CANARY"]}'),
        "body, whole": asked(posted, body='"CANARY"'),
        "body, choice": asked(posted, body='{"role": "CANARY", "content": "x"}'),
        "body, scope": asked("POST /api/keys", body='{"name": "x", "scopes": ["CANARY"]}'),
        "body, time": asked("POST /api/keys", body='{"name": "x", "scopes": ["read"], "expires_at": "CANARY"}'),
        "body, key": asked("POST /api/keys", body='{"name": "x", "scopes": ["read"], "key": "CANARY"}'),
        "body, id": asked("POST /api/tickets", body='{"conversations": ["CANARY"]}'),
        "body, agent's id": asked(posted, body='{"role": "agent", "agent_id": "CANARY", "content": "x"}'),
        "body, answered": asked(posted, body='{"role": "user", "reply_to": "CANARY", "content": "x"}'),
        "body, no JSON": asked(posted, body="CANARY", status=400),
        "body, broken": asked(posted, body='{"role": "user", "content": "CANARY', status=400),
        "body, no UTF-8": asked(posted, body='{"content": "CANARY\udcff"}', status=400),
        "body, NUL": asked(posted, body='{"role": "user", "content": "CANARY\\u0000"}'),
        "body, deep": asked(posted, body='{"metadata": ' + '{"CANARY":' * 1_500 + "1" + "}" * 1_501, status=400),
        "body, unwanted": asked("GET /api/session", body="CANARY", status=200),
        "body, import": asked(
            posted,
            "Content-Type: application/x-ndjson",
            body='{"role": "user", "content": "CANARY"}\n{"role": "CANARY"}\n',
            own="rows",
        ),
        "body, type of its own": asked(posted, "Content-Type: application/CANARY", body="CANARY", status=415),
        "body, charset": asked(posted, "Content-Type: application/json; charset=CANARY", body="{}", status=415),
        "body, coding": asked(posted, "Content-Encoding: CANARY", body="CANARY", status=415),
        "body, coding that it has not": asked(posted, "Content-Encoding: gzip", body="CANARY", status=400),
        "body, cut off": bytes_of(head + b'\r\nContent-Length: 900\r\n\r\n{"title": "CANARY', 0, cut=True),
        "body, bad chunk": bytes_of(head + b"\r\nTransfer-Encoding: chunked\r\n\r\nCANARY\r\n\r\n", 400),
        "body, bad later chunk": bytes_of(
            head + b'\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"t\r\nCANARY\r\n\r\n', 400
        ),
        "body, of two lengths": bytes_of(head + b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nCANARY", 400),
        # In other headers.
        "idempotency key": asked(
            posted,
            "Idempotency-Key: CANARY",
            body='{"role": "user", "content": "x"}',
            status=201,
            own="rows",
        ),
        "idempotency key, where none is kept": asked(
            "POST /api/tickets", "Idempotency-Key: CANARY", body='{"feed": true}'
        ),
        "idempotency key, malformed": asked(posted, "Idempotency-Key: CANARY\xff", body='{"role": "user"}'),
        "request id": asked("GET /api/session", "X-Request-ID: CANARY", status=200, own="answer log"),
        "request id, malformed": asked("GET /api/session", "X-Request-ID: CANARY CANARY", status=200),
        "host": asked("GET /api/session", "Host: CANARY.example", status=200),
        "host, malformed": asked("GET /api/session", "Host: me:CANARY@localhost", status=200),
        "origin": asked("POST /api/conversations", "Origin: https://CANARY.example", body="{}", status=201),
        "preflight": asked(
            "OPTIONS /api/agents", "Origin: https://a", "Access-Control-Request-Headers: CANARY", status=405
        ),
        "agent": asked("GET /api/session", "User-Agent: CANARY", "Referer: https://a/?ticket=CANARY", status=200),
        "own header": asked("GET /api/session", "X-Api-Key: CANARY", "CANARY: 1", status=200),
        "forwarded": asked("GET /api/session", "X-Forwarded-For: CANARY", "Forwarded: for=CANARY", status=200),
        "accept": asked(
            "GET /api/session", "Accept: text/CANARY", "If-None-Match: CANARY", "Range: CANARY", status=200
        ),
        "expect": asked("GET /api/session", "Expect: CANARY", status=417),
        "upgrade": asked("GET /api/session", "Upgrade: CANARY", "Connection: Upgrade", status=200),
        "last event": Try(lambda c: ask(streamed, f"Last-Event-ID: {c}", until=_READY), 200),
        "last events": Try(
            lambda c: ask(f"GET /api/events?conversations={conversation}", f"Last-Event-ID: {c}", until=_READY), 200
        ),
        # What is no request.
        "line": bytes_of(b"CANARY\r\n\r\n", 400),
        "method": bytes_of(b"CANARY / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        "version": bytes_of(b"GET /?ticket=CANARY HTTP/CANARY\r\nHost: a\r\n\r\n", 400),
        "field without a colon": bytes_of(b"GET / HTTP/1.1\r\nHost: a\r\nCANARY\r\n\r\n", 400),
        "blank in a field's name": bytes_of(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization : CANARY\r\n\r\n", 400),
        "line, too long": bytes_of(b"GET /" + b"CANARY" * 500 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        "fields, too many": bytes_of(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: CANARY\r\n" * 2_000 + b"\r\n", 400),
        "TLS": bytes_of(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03CANARY\r\n\r\n", 400),
        "HTTP/2": bytes_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nCANARY\r\n\r\n", 400),
        "head, cut off": bytes_of(b"GET / HTTP/1.1\r\nAuthorization: Bearer CANARY", 0, cut=True),
    }


@pytest.mark.parametrize(
    ("how", "database"),
    [("python -m server", "sqlite"), ("python -m server", "postgresql"), ("gunicorn", "postgresql")],
)
async def test_no_secret_that_comes_in_comes_out(
    how: str, database: str, request: pytest.FixtureRequest, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    url: str = request.getfixturevalue(f"{database}_url")
    canaries = Canaries()
    password = canaries.make("the password of Redis")
    bus = {"REDIS_URL": f"redis://:{password}@127.0.0.1:{own_valkey.port}/0"}
    with own_valkey.client() as client:
        client.config_set("requirepass", password if database == "postgresql" else "another one")
    if database == "postgresql":
        # Asked for none, PostgreSQL takes any.
        served_url = url.replace("swarm@", f"swarm:{canaries.make('the password of DATABASE_URL')}@")
    else:
        served_url = url
    async with echo() as issuer:
        jwks = f"http://127.0.0.1:{issuer}/keys?key={canaries.make('SWARM_JWKS_URL')}"
        async with running(how, served_url, canaries, tmp_path, SWARM_JWKS_URL=jwks, **bus) as server:
            conversation = str((await server.made("/api/conversations", {}))[0]["id"])
            await _push(server, conversation, canaries)
            digests = await _make_and_use(server, conversation, canaries)
            shown = [
                await server.ask(f"GET {path}", good=False)
                for path in ("/health", "/health/live", "/health/ready", "/openapi.json", "/docs")
            ]
            token = server.environment["SWARM_METRICS_TOKEN"]
            figures = await server.ask("GET /metrics", f"Authorization: Bearer {token}", good=False)
            assert status(figures) == 200
            assert [canaries.found_in(page) for page in (*shown, figures)] == [[]] * 6
            environment = server.environment
            if database == "postgresql":
                with redis.Redis.from_url(environment["REDIS_URL"]) as client:
                    keys: list[bytes] = client.keys()
                assert keys
                assert canaries.found_in(b" ".join(keys)) == []
        log = server.log.read_bytes()
    assert b"the JWK set could not be fetched" in log
    assert b"slow database operation" in log
    assert (b"the doorbell is connected" in log) == (database == "postgresql")
    assert (b"rates are counted by each process alone" in log) == (database == "sqlite")
    assert canaries.found_in(log) == ["request id"]
    table = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "server", "settings"], cwd=ROOT, env=environment, capture_output=True
    )
    assert b"SWARM_BOOTSTRAP_KEY" in table.stdout
    assert canaries.found_in(table.stdout + table.stderr) == []
    tables = await asyncio.to_thread(stored, url)
    rows = {name: canaries.found_in(content) for name, content in tables.items()}
    own = ("body, content", "body, metadata", "body, agent", "body, import", "idempotency key")
    assert {place for places in rows.values() for place in places} == set(own)
    assert rows["credentials"] == rows["audit"] == []
    assert rows["idempotency_keys"] == ["idempotency key"]
    assert all(digest in tables["credentials"] for digest in digests)


async def _push(server: Running, conversation: str, canaries: Canaries) -> None:
    """Each of the tries, whose answer is looked at."""
    wrong = []
    for place, attempt in tries(server, conversation).items():
        answer = await attempt.request(canaries.make(place))
        allowed = [place] if "answer" in attempt.own else []
        if status(answer) != attempt.status or canaries.found_in(answer) != allowed:
            wrong.append((place, attempt.status, answer[:2_000]))
    assert not wrong, "\n".join(map(str, wrong))


async def _make_and_use(server: Running, conversation: str, canaries: Canaries) -> list[bytes]:
    """Whatever the server itself makes that is secret, shown once and used; the digests of all."""
    made, answer = await server.made("/api/keys", {"name": "the back end", "scopes": ["read", "write"]})
    key = str(made["key"])
    secrets = {"a key": key.rpartition("_")[2]}
    canaries.add("a key", secrets["a key"])
    assert canaries.found_in(answer) == ["a key"]
    with_key = f"Authorization: Bearer {key}"

    _, answer = await _made_by(server, with_key, "/api/session", None)
    [cookie] = re.findall(rb"__Host-swarm=(swarm_session_[0-9a-f_]+)", answer)
    secrets["a session"] = canaries.add("a session", cookie.decode().rpartition("_")[2])
    assert canaries.found_in(answer) == ["a session"]
    with_cookie = f"Cookie: __Host-swarm={cookie.decode()}"

    made, answer = await _made_by(server, with_cookie, "/api/tickets", {"conversations": [conversation], "feed": True})
    ticket = str(made["ticket"])
    secrets["a ticket"] = canaries.add("a ticket", ticket.rpartition("_")[2])
    assert canaries.found_in(answer) == ["a ticket"]

    claims = {"sub": "ann", "tenant": "acme", "scope": "read", "aud": "swarm", "exp": time.time() + 600}
    secret = OctKey.import_key(server.environment["SWARM_JWT_SECRET"])
    token = signed("HS256", secret, {"alg": "HS256"}, claims)
    canaries.add("a token", token.rpartition(".")[2])
    with_token = f"Authorization: Bearer {token}"

    for credential in (with_key, with_cookie, with_token):
        for path, end in (("/api/session", None), ("/api/events", _READY)):
            answer = await server.ask(f"GET {path}", credential, good=False, until=end)
            assert (status(answer), canaries.found_in(answer)) == (200, [])
    for path in (f"/api/conversations/{conversation}/events", "/api/events"):
        answer = await server.ask(f"GET {path}?ticket={ticket}", good=False, until=_READY)
        assert (status(answer), canaries.found_in(answer)) == (200, [])
        assert _READY in answer
    for path in ("/api/keys", f"/api/keys/{key.split('_')[2]}"):
        answer = await server.ask(f"GET {path}")
        assert (status(answer), canaries.found_in(answer)) == (200, [])
        assert b"the back end" in answer

    # And in all the wrong places, good as they are.
    for line, field in (
        ("GET /api/conversations", f"Cookie: __Host-swarm={key}"),
        ("GET /api/conversations", f"Authorization: Bearer {cookie.decode()}"),
        (f"GET /api/events?ticket={key}", "Accept: */*"),
        (f"GET /api/conversations?ticket={ticket}", "Accept: */*"),
        (f"GET /api/keys/{key}", "Accept: */*"),
        ("GET /metrics", with_key),
    ):
        answer = await server.ask(line, field, good=False)
        assert (status(answer) in {401, 403}, canaries.found_in(answer)) == (True, []), (line, answer)
    answer = await server.ask("DELETE /api/session", with_cookie, "Sec-Fetch-Site: same-origin", good=False)
    assert (status(answer), canaries.found_in(answer)) == (204, [])
    answer = await server.ask(f"DELETE /api/keys/{key.split('_')[2]}")
    assert (status(answer), canaries.found_in(answer)) == (204, [])
    assert status(await server.ask("GET /api/conversations", with_key, good=False)) == 401
    return [hashlib.sha256(secret.encode()).hexdigest().encode() for secret in secrets.values()]


async def _made_by(
    server: Running, credential: str, path: str, body: dict[str, Any] | None
) -> tuple[dict[str, Any], bytes]:
    content = b"" if body is None else json.dumps(body).encode()
    answer = await server.ask(f"POST {path}", credential, "Sec-Fetch-Site: same-origin", body=content, good=False)
    assert status(answer) == 201, answer
    made: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return made, answer


# Refusals that quote what they refuse: a check puts the row into its details, and a trigger says what it likes.
_FAULTS = {
    "postgresql": """
        CREATE FUNCTION fault() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'refused: %', NEW; END $$ LANGUAGE plpgsql;
        CREATE TRIGGER fault BEFORE INSERT ON agents FOR EACH ROW EXECUTE FUNCTION fault();
        ALTER TABLE conversations ADD CONSTRAINT fault CHECK (title <> title) NOT VALID;
        ALTER TABLE messages ADD CONSTRAINT fault CHECK (content <> content) NOT VALID;
        ALTER TABLE credentials ADD CONSTRAINT fault CHECK (name <> name) NOT VALID;
    """,
    "sqlite": """
        CREATE TRIGGER fault_1 BEFORE INSERT ON agents BEGIN SELECT RAISE(ABORT, 'refused'); END;
        CREATE TRIGGER fault_2 BEFORE INSERT ON conversations BEGIN SELECT RAISE(ABORT, 'refused'); END;
        CREATE TRIGGER fault_3 BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'refused'); END;
        CREATE TRIGGER fault_4 BEFORE INSERT ON credentials BEGIN SELECT RAISE(ABORT, 'refused'); END;
    """,
}


def _break(database: str, url: str) -> None:
    if database == "postgresql":
        with psycopg.connect(url) as server:
            server.execute(_FAULTS[database])
    else:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.executescript(_FAULTS[database])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_statement_that_fails_tells_the_log_nothing_of_its_values(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url: str = request.getfixturevalue(f"{database}_url")
    canaries = Canaries()
    async with running("python -m server", url, canaries, tmp_path) as server:
        conversation = str((await server.made("/api/conversations", {}))[0]["id"])
        agent = {"name": "n", "role": "r", "system_prompt": canaries.make("agent"), "icon": "i"}
        posted = f"POST /api/conversations/{conversation}/messages"
        await asyncio.to_thread(_break, database, url)
        attempts: list[tuple[str, dict[str, Any], str]] = [
            ("PUT /api/agents/a", agent, canaries.make("idempotency key, agent")),
            ("POST /api/conversations", {"title": canaries.make("title")}, canaries.make("idempotency key, title")),
            (posted, {"role": "user", "content": canaries.make("content")}, canaries.make("idempotency key, content")),
            ("POST /api/keys", {"name": canaries.make("name"), "scopes": ["read"]}, ""),
            ("POST /api/session", {}, ""),
            ("POST /api/tickets", {"feed": True}, ""),
        ]
        for line, body, key in attempts:
            fields = (f"Idempotency-Key: {key}",) if key else ()
            answer = await server.ask(line, *fields, body=json.dumps(body).encode())
            assert (status(answer), canaries.found_in(answer)) == (500, []), (line, answer)
    log = server.log.read_bytes()
    assert canaries.found_in(log) == []
    failures = [line for line in map(json.loads, log.splitlines()) if line["event"] == "request failed"]
    assert len(failures) == len(attempts)
    assert [line["exception"][-400:] for line in failures if "StatementFailed: " not in line["exception"]] == []
    assert any(
        ("CheckViolationError 23514 credentials fault" if database == "postgresql" else "TRIGGER") in line["exception"]
        for line in failures
    )


@pytest.mark.parametrize("why", ["nobody listens", "it refuses the user"])
async def test_a_database_and_a_redis_that_are_away_are_named_without_their_passwords(
    why: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    canaries = Canaries()
    place = f"127.0.0.1:{free_port()}/swarm"
    if why == "it refuses the user":
        place = str(request.getfixturevalue("postgresql_url")).partition("@")[2]
    url = f"postgresql://stranger:{canaries.make('DATABASE_URL')}@{place}"
    bus = f"redis://stranger:{canaries.make('REDIS_URL')}@127.0.0.1:{free_port()}/0"
    jwks = f"http://127.0.0.1:{free_port()}/keys?key={canaries.make('SWARM_JWKS_URL')}"
    async with running("python -m server", url, canaries, tmp_path, REDIS_URL=bus, SWARM_JWKS_URL=jwks) as server:
        key = f"swarm_key_{'0' * 16}_{canaries.make('key')}"
        for credential in (f"Authorization: Bearer {key}", f"Authorization: Bearer {server.bootstrap}"):
            answer = await server.ask("GET /api/conversations", credential, good=False)
            assert (status(answer), canaries.found_in(answer)) == (503, [])
        answer = await server.ask(
            f"GET /api/events?ticket=swarm_ticket_{'0' * 16}_{canaries.make('ticket')}", good=False
        )
        assert (status(answer), canaries.found_in(answer)) == (200, [])  # and ends: see `when_unavailable`
        body = json.dumps({"role": "user", "content": canaries.make("content")}).encode()
        answer = await server.ask(f"POST /api/conversations/{uuid4()}/messages", body=body)
        assert (status(answer), canaries.found_in(answer)) == (503, [])
        answer = await server.ask("GET /health", good=False)
        assert (status(answer), canaries.found_in(answer)) == (503, [])
        await until(lambda: b"the JWK set could not be fetched" in server.log.read_bytes(), "no keys")
    log = server.log.read_bytes()
    assert b"database not ready" in log
    assert b"rates are counted by each process alone" in log
    assert canaries.found_in(log) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgresql://me:CANARY@host:port/name"),
        ("DATABASE_URL", "postgresql://me:CAN@ARY/CANARY@host/name"),
        ("DATABASE_URL", "postgresql://me:CANARY@[::1/name"),
        ("DATABASE_URL", "postgresql://me:CANARY@[::1]x/name"),  # libpq would quote all of it
        ("DATABASE_URL", "postgresql://me:CANARY@[::1]]/name"),
        ("DATABASE_URL", "mysql://me:CANARY@host/name"),
        ("REDIS_URL", "redis://:CANARY@host:port/0"),
        ("REDIS_URL", "http://:CANARY@host"),
        ("SWARM_BOOTSTRAP_KEY", "CANARY é"),
        ("SWARM_METRICS_TOKEN", "CANARY CANARY"),
        ("SWARM_JWT_ALGORITHMS", "CANARY"),
        ("SWARM_JWKS_URL", "http://issuer.example/?key=CANARY"),
        ("SWARM_JWKS_URL", "https://me:CANARY@issuer.example"),
        ("SWARM_JWKS_URL", "https://issuer.example/?key=CANARY"),  # without an audience
        ("SWARM_CORS_ORIGINS", "https://me:CANARY@a.example"),
        ("SWARM_METRICS_ADDRESS", "CANARY"),
        ("SWARM_RATE_LIMIT", "CANARY"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_not_repeated(variable: str, value: str) -> None:
    canaries = Canaries()
    with pytest.raises(SettingError, match=variable) as raised:
        settings.load({variable: value.replace("CANARY", canaries.make(variable))})
    assert canaries.found_in(str(raised.value).encode()) == []


def test_no_configuration_shows_its_secrets() -> None:
    canaries = Canaries()
    loaded = settings.load(
        {
            "DATABASE_URL": f"postgresql://me:{canaries.make('DATABASE_URL')}@host/name",
            "REDIS_URL": f"redis://:{canaries.make('REDIS_URL')}@host",
            "SWARM_JWT_AUDIENCE": "swarm",
            **{
                name: canaries.make(name) for name in ("SWARM_BOOTSTRAP_KEY", "SWARM_JWT_SECRET", "SWARM_METRICS_TOKEN")
            },
            "SWARM_JWKS_URL": f"https://issuer.example/?key={canaries.make('SWARM_JWKS_URL')}",
        }
    )
    assert canaries.found_in(f"{loaded!r} {loaded.storage.url}".encode()) == []
