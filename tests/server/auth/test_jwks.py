"""The keys at a URL: how they are fetched, how long they are believed, and who waits for them."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx
from joserfc.jwk import OctKey
from structlog.testing import capture_logs

from server.auth import jwks
from server.auth.claims import Claims, KeysUnavailable, TokenRefused
from server.auth.jwks import Fetched, FetchFailed, Jwks, fetch_by_http
from server.auth.jwt import JwtVerifier
from server.auth.jwt_config import JwtConfig
from server.auth.key_set import KeySet
from tests.free_port import free_port
from tests.server.auth.issuer import NOW, URL, Publisher, Time, key, published, token, until

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def published_at(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server on loopback that answers so."""
    app = web.Application()
    app.router.add_get("/keys", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    finally:
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------- over HTTP


@pytest.mark.parametrize(
    ("cache_control", "max_age"),
    [
        (None, None),
        ("public, max-age=3600, must-revalidate", 3600.0),
        ("MAX-AGE=60", 60.0),
        ('max-age="7"', 7.0),
        ("no-store", None),
        ("s-maxage=5", None),
        ("x-max-age=5", None),
        ("max-age=-1", None),
        ("max-age=soon", None),
    ],
)
async def test_an_answer_says_how_long_it_may_be_kept(cache_control: str | None, max_age: float | None) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b'{"keys": []}', headers={"Cache-Control": cache_control} if cache_control else {})

    async with published_at(answer) as url:
        with blockbuster_ctx(["server"]):
            assert await fetch_by_http(url) == Fetched(b'{"keys": []}', max_age)


async def _unavailable(_: web.Request) -> web.Response:
    return web.Response(status=503, body=b'{"keys": []}')


async def _not_found(_: web.Request) -> web.Response:
    raise web.HTTPNotFound


async def _elsewhere(_: web.Request) -> web.Response:
    raise web.HTTPFound("/keys?again")


async def _silent(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def _larger(_: web.Request) -> web.Response:
    return web.Response(body=b" " * (256 * 1024 + 1))


async def _cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"keys":')
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_unavailable, "status 503"),
        (_not_found, "status 404"),
        (_elsewhere, "status 302"),
        (_silent, "it took too long"),
        (_dripping, "it took too long"),
        (_endless, "it is too large"),
        (_larger, "it is too large"),
        (_cut, "ClientPayloadError"),
    ],
)
async def test_what_is_no_answer_is_given_up(handler: Handler, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "_FETCH_SECONDS", 0.2 if "long" in reason else 20.0)
    async with published_at(handler) as url, asyncio.timeout(10):
        with pytest.raises(FetchFailed, match=f"^{reason}$"):
            await fetch_by_http(url)


async def test_a_fetch_is_bounded_in_time() -> None:
    assert jwks._FETCH_SECONDS == 5.0


async def test_nobody_listens() -> None:
    with pytest.raises(FetchFailed, match="ClientConnectorError"):
        await fetch_by_http(f"http://127.0.0.1:{free_port()}/keys")


async def test_the_largest_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # And no proxy is asked, whatever the environment names.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b" " * (256 * 1024))

    async with published_at(answer) as url:
        assert len((await fetch_by_http(url)).body) == 256 * 1024


async def test_what_is_compressed_unasked_is_not_unpacked() -> None:
    packed = gzip.compress(b" " * 10_000_000)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with published_at(answer) as url:
        assert (await fetch_by_http(url)).body == packed


# ------------------------------------------------------------------------------------------- what is in a set


def _set(*keys: object, **members: object) -> KeySet:
    return KeySet.read(json.dumps({"keys": keys, **members}).encode(), ALGORITHMS)


def _jwk(kind: str, **members: Any) -> dict[str, Any]:
    [jwk] = published(key(kind), **members)
    return {name: value for name, value in jwk.items() if value is not ...}


@pytest.mark.parametrize(
    "document", [b"", b"null", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [', b"\xff", b'{"keys":' + b"[" * 100_000]
)
def test_what_is_no_set_is_said_to_be_none(document: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a JWK set"):
        KeySet.read(document, ALGORITHMS)


@pytest.mark.parametrize(
    "unusable",
    [
        1,
        None,
        {},
        {"kty": "quantum", "kid": "x"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "n": "AQAB"},
        dict(OctKey.import_key("x" * 32, {"kid": "x"}).as_dict()),
        dict(key("rsa").as_dict(private=True)),
        dict(key("p256").as_dict(private=True)),
        dict(key("ed25519").as_dict(private=True)),
        _jwk("rsa", use="enc"),
        _jwk("rsa", use=["sig"]),
        _jwk("rsa", key_ops=["encrypt"]),
        _jwk("rsa", key_ops="verify"),
        _jwk("rsa", kid=1),
        _jwk("rsa", alg="RSA-OAEP"),
        _jwk("rsa", alg="RS512"),
        _jwk("rsa", n=_jwk("rsa")["n"][:300]),
        _jwk("rsa", n="AQAB"),
        _jwk("rsa", n="!"),
        _jwk("rsa", n=""),
        _jwk("rsa", n=1),
        _jwk("rsa", e=...),
        _jwk("rsa", e="Ag"),
        _jwk("p256", x=_jwk("p256")["y"]),
        _jwk("p256", crv="P-384"),
        _jwk("p256", crv="secp256k1"),
        _jwk("p256", crv=["P-256"]),
        _jwk("ed25519", crv="X25519"),
        _jwk("ed25519", crv="Ed448"),
        _jwk("ed25519", x="AAAA"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_keys_that_cannot_be_used_are_left_out(unusable: object) -> None:
    found = _set(unusable, _jwk("p384"))
    for algorithm in ALGORITHMS:
        assert [one.kid for one in found.candidates(algorithm, None)] == (["p384 0"] if algorithm == "ES384" else [])


def test_keys_are_found_by_what_they_are_for() -> None:
    found = _set(
        _jwk("rsa", use="sig", key_ops=["verify"], x5c=[1], x5u="no URL", unknown={}),
        _jwk("rsa", kid="for one", alg="PS256"),
        _jwk("p256", kid=...),
        _jwk("p256", kid="rsa 0"),
        another="member",
    )

    def ids(algorithm: str, kid: str | None) -> list[str | None]:
        return [one.kid for one in found.candidates(algorithm, kid)]

    assert ids("RS256", None) == ids("RS256", "rsa 0") == ["rsa 0"]
    assert ids("PS256", None) == ["rsa 0", "for one"]
    assert ids("RS256", "for one") == []
    assert ids("ES256", None) == [None, "rsa 0"]
    assert ids("ES256", "rsa 0") == ["rsa 0"]
    assert ids("ES256", "") == []
    assert ("rsa 0" in found, "for one" in found, "" in found, None in found) == (True, True, False, False)


def test_only_so_many_keys_are_used() -> None:
    found = _set(*(_jwk("ed25519", kid=str(n)) for n in range(100)))
    assert len(found.candidates("EdDSA", None)) == 64


# ------------------------------------------------------------------------------------------------ as time passes


@asynccontextmanager
async def keeping(publisher: Publisher, time: Time) -> AsyncIterator[Jwks]:
    kept = Jwks(URL, ALGORITHMS, publisher.fetch, time.clock, time.sleep)
    await kept.start()
    try:
        async with asyncio.timeout(60):
            yield kept
    finally:
        publisher.open.set()
        await kept.close()


@pytest.fixture
def time() -> Time:
    return Time()


async def asleep(time: Time, seconds: float) -> None:
    """Until the next thing that is waited for is so far away, once all that can run now has run."""
    for _ in range(20):
        await asyncio.sleep(0)
    await until(lambda: time.until_next() == seconds)


@pytest.mark.parametrize(
    ("max_age", "after"),
    [(None, 480), (0.0, 48), (59.0, 48), (100.0, 80), (86_400.0, 69_120), (9_999_999_999.0, 69_120)],
)
async def test_keys_are_fetched_again_before_they_are_too_old(time: Time, max_age: float | None, after: float) -> None:
    publisher = Publisher(key("rsa"))
    publisher.max_age = max_age
    async with keeping(publisher, time):
        for fetches in range(1, 4):
            await asleep(time, after)
            assert publisher.fetches == fetches
            time.go_on(after)
            await until(lambda fetches=fetches: publisher.fetches == fetches + 1)  # type: ignore[misc]


async def test_keys_are_the_same_until_they_change(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        first = await kept.keys()
        await asleep(time, 480)
        time.go_on(480)
        await asleep(time, 480)
        assert (publisher.fetches, kept.current) == (2, first)
        publisher.keys = published(key("rsa", 1))
        time.go_on(480)
        await asleep(time, 480)
        assert kept.current is not first
        assert "rsa 1" in await kept.keys()
        assert "rsa 0" not in await kept.keys()


async def test_all_who_come_before_the_first_keys_wait_for_the_one_fetch(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    publisher.open.clear()
    async with keeping(publisher, time) as kept:
        waiting = [asyncio.create_task(kept.keys()) for _ in range(50)]
        await until(lambda: publisher.fetches == 1)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        publisher.open.set()
        [first, *others] = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert set(others) == {kept.current}
        assert publisher.fetches == 1


async def test_without_keys_nothing_is_said_and_nobody_has_the_url_asked_more_often(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    publisher.fail()
    async with keeping(publisher, time) as kept:
        for fetches in range(1, 4):
            await asleep(time, 10)
            for _ in range(100):
                with pytest.raises(KeysUnavailable):
                    await kept.keys()
            assert publisher.fetches == fetches
            time.go_on(10)
        publisher.error = None
        time.go_on(10)
        await asleep(time, 480)
        assert "rsa 0" in await kept.keys()


@pytest.mark.parametrize("how", ["fails", "no set", "breaks"])
async def test_keys_stay_while_a_fetch_fails_for_a_day(time: Time, how: str) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        first = await kept.keys()
        await asleep(time, 480)
        if how == "fails":
            publisher.fail()
        elif how == "no set":
            publisher.keys = {}  # type: ignore[assignment]
        else:
            publisher.error = RuntimeError("nobody thought of this")
        time.go_on(480)
        await asleep(time, 10)
        time.go_on(86_400 - 480 - 1)
        await asleep(time, 10)
        assert await kept.keys() is first
        time.go_on(1)
        assert kept.current is None
        with pytest.raises(KeysUnavailable):
            await kept.keys()
        publisher.error, publisher.keys = None, published(key("rsa", 1))
        time.go_on(10)
        await asleep(time, 480)
        assert "rsa 1" in await kept.keys()


async def test_a_set_of_no_keys_revokes_them_all(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        publisher.keys = []
        time.go_on(480)
        await asleep(time, 480)
        assert (await kept.keys()).candidates("RS256", None) == []


# ----------------------------------------------------------------------------------------------- unknown ids


async def looked_up(kept: Jwks, kid: str) -> bool:
    """As a verifier does it. Returns whether there is such a key."""
    begun = kept.begun
    keys: KeySet | None = await kept.keys()
    while keys is not None and kid not in keys:
        keys = await kept.newer(kid, begun)
    return keys is not None


async def test_all_who_ask_for_a_new_key_share_one_fetch(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        publisher.keys += published(key("rsa", 1))
        publisher.open.clear()
        asking = [asyncio.create_task(looked_up(kept, "rsa 1")) for _ in range(50)]
        await until(lambda: publisher.fetches == 2)
        asking += [asyncio.create_task(looked_up(kept, "rsa 1")) for _ in range(50)]
        await asyncio.sleep(0)
        asking.pop(0).cancel()  # who asked first does not end it for the others
        publisher.open.set()
        assert all(await asyncio.gather(*asking))
        await asleep(time, 480)
        assert publisher.fetches == 2  # and nobody has asked for one more


async def test_a_key_that_came_while_a_fetch_was_under_way_is_looked_for_again(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        publisher.open.clear()
        time.go_on(480)
        await until(lambda: publisher.fetches == 2)
        publisher.keys += published(key("rsa", 1))  # the answer that is on its way does not have it
        asking = asyncio.create_task(looked_up(kept, "rsa 1"))
        await asyncio.sleep(0)
        publisher.open.set()
        assert await asking
        assert publisher.fetches == 3


async def test_ids_that_are_made_up_have_the_url_asked_once_in_ten_seconds(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        assert not await looked_up(kept, "made up")
        assert publisher.fetches == 2
        await asleep(time, 480)
        assert not await looked_up(kept, "made up")  # known to be: it is not waited for
        asking = [asyncio.create_task(looked_up(kept, f"made up {n}")) for n in range(50)]
        await asleep(time, 10)
        publisher.keys += published(key("rsa", 1))
        asking.append(asyncio.create_task(looked_up(kept, "rsa 1")))  # a good one among them
        await asyncio.sleep(0)
        time.go_on(9)
        await asyncio.sleep(0)
        assert (publisher.fetches, any(task.done() for task in asking)) == (2, False)
        time.go_on(1)
        assert await asyncio.gather(*asking) == [False] * 50 + [True]
        assert publisher.fetches == 3
        await asleep(time, 480)
        time.go_on(10)
        assert not await looked_up(kept, "made up")
        assert publisher.fetches == 4


async def test_an_id_that_was_not_there_may_come(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        assert not await looked_up(kept, "rsa 1")
        await asleep(time, 480)
        time.go_on(10)
        assert not await looked_up(kept, "made up")
        await asleep(time, 480)
        publisher.keys += published(key("rsa", 1))
        asking = asyncio.create_task(looked_up(kept, "rsa 1"))  # nobody has asked the last fetch for it
        await asleep(time, 10)
        time.go_on(10)
        assert await asking


async def test_a_clock_that_is_set_back_keeps_nobody_waiting(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        assert not await looked_up(kept, "made up")
        await asleep(time, 480)
        time.go_on(-3_600)
        asking = asyncio.create_task(looked_up(kept, "another"))
        await asleep(time, 10)
        time.go_on(10)
        assert not await asking


async def test_only_so_many_wait_for_a_key(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await kept.keys()
        publisher.open.clear()
        asking = [asyncio.create_task(looked_up(kept, f"made up {n}")) for n in range(100)]
        await until(lambda: publisher.fetches == 2)
        with pytest.raises(KeysUnavailable):
            await looked_up(kept, "one more")
        assert await looked_up(kept, "rsa 0")  # who waits for nothing is not turned away
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        one_more = asyncio.create_task(looked_up(kept, "one more"))
        publisher.open.set()
        await asleep(time, 10)
        time.go_on(10)
        assert await asyncio.gather(*asking[1:], one_more) == [False] * 100


async def test_what_cannot_be_looked_for_is_not_said_to_be_wrong(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await asleep(time, 480)
        publisher.fail()
        for _ in range(10):
            with pytest.raises(KeysUnavailable):
                await looked_up(kept, "rsa 1")
            assert await looked_up(kept, "rsa 0")
        assert publisher.fetches == 2
        publisher.error = None
        await asleep(time, 10)
        time.go_on(10)
        await asleep(time, 480)
        publisher.keys += published(key("rsa", 1))
        assert await looked_up(kept, "rsa 1")


async def test_who_waits_when_it_ends_is_told(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    async with keeping(publisher, time) as kept:
        await kept.keys()
        publisher.open.clear()
        asking = asyncio.create_task(looked_up(kept, "rsa 1"))
        await until(lambda: publisher.fetches == 2)
        await kept.close()
        with pytest.raises(KeysUnavailable):
            await asking
        time.go_on(10)
        with pytest.raises(KeysUnavailable):
            await looked_up(kept, "rsa 1")


async def test_logs_name_no_url(time: Time) -> None:
    publisher = Publisher(key("rsa"))
    publisher.fail()
    with capture_logs() as lines:
        async with keeping(publisher, time):
            await asleep(time, 10)
    assert [(line["event"], line["error"]) for line in lines] == [
        ("the JWK set could not be fetched", "status 503"),
    ]


# ------------------------------------------------------------------------------------------ rotation under load


async def test_no_good_token_is_refused_while_keys_rotate_under_load(time: Time) -> None:
    """Each key is published when its first token is made, and stays for one more rotation. Somebody makes up ids all
    the while."""
    fetches, good, bad = 0, 0, 0
    now, before = key("p256", 0), key("p256", 0)

    async def answer(_: web.Request) -> web.Response:
        nonlocal fetches
        fetches += 1
        document = {"keys": published(*{one.kid: one for one in (now, before)}.values())}
        await asyncio.sleep(0.005)  # what was read is sent later: rotations fall into it
        return web.json_response(document)

    async def verify_good(verifier: JwtVerifier, text: str) -> None:
        nonlocal good
        assert isinstance(await verifier.verify(text), Claims)
        good += 1

    async def verify_bad(verifier: JwtVerifier, text: str) -> None:
        nonlocal bad
        with pytest.raises((TokenRefused, KeysUnavailable)):
            await verifier.verify(text)
        bad += 1

    async with published_at(answer) as url, asyncio.timeout(60):
        verifier = JwtVerifier(JwtConfig(jwks_url=url), fetch_by_http, time.clock, time.sleep)
        await verifier.start()
        with blockbuster_ctx(["server.auth"]):
            for rotation in range(1, 16):
                before, now = now, key("p256", rotation)
                tasks = [
                    asyncio.create_task(verify(verifier, token("ES256", exp=NOW + 9_999, number=number, jti=n, **more)))
                    for n in range(20)
                    for verify, number, more in (
                        (verify_good, rotation - 1, {}),
                        (verify_good, rotation, {}),
                        (verify_bad, rotation, {"header": {"kid": f"made up {rotation} {n}"}}),
                    )
                ]
                while not all(task.done() for task in tasks):
                    time.go_on(0.1)
                    await asyncio.sleep(0.001)
                await asyncio.gather(*tasks)
        await verifier.close()
    assert (good, bad) == (15 * 40, 15 * 20)
    passed = time.now - NOW
    assert 15 <= fetches <= 2 + passed / 10 + passed / 480
