"""Which tokens are believed, and that no other one is."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from joserfc.jwk import OctKey, RSAKey

from server.auth import jwt
from server.auth.claims import Claims, KeysUnavailable, TokenRefused
from server.auth.jwt import JwtVerifier
from server.auth.jwt_config import JwtConfig
from tests.server.auth.issuer import (
    AUDIENCE,
    CLAIMS,
    ISSUER,
    KINDS,
    NOW,
    SECRET,
    URL,
    Publisher,
    Time,
    encode,
    key,
    published,
    signed,
    token,
    until,
)

ANN = Claims(subject="ann", tenant="acme", scopes=frozenset({"read", "write"}), expires=NOW + 600)
BOTH = JwtConfig(secret=SECRET, jwks_url=URL, issuer=ISSUER, audience=AUDIENCE, algorithms=tuple(KINDS))
BY_URL = JwtConfig(jwks_url=URL, issuer=ISSUER, audience=AUDIENCE)
BY_SECRET = JwtConfig(secret=SECRET, issuer=ISSUER, audience=AUDIENCE)
ALL = [key(kind) for kind in dict.fromkeys(KINDS.values()) if kind != "secret"]


@asynccontextmanager
async def verifying(
    config: JwtConfig = BOTH, publisher: Publisher | None = None, time: Time | None = None
) -> AsyncIterator[JwtVerifier]:
    """A verifier for which no time passes, unless `time` does. Where it would wait for its next look, it looks."""
    time = time or _Impatient()
    verifier = JwtVerifier(config, (publisher or Publisher(*ALL)).fetch, time.clock, time.sleep)
    await verifier.start()
    try:
        yield verifier
    finally:
        await verifier.close()


class _Impatient(Time):
    async def sleep(self, seconds: float) -> None:
        await (asyncio.sleep(0) if seconds <= 10 else super().sleep(seconds))


async def refused(verifier: JwtVerifier, text: str) -> str:
    """Why it is. Says nothing of the token."""
    async with asyncio.timeout(10):
        with pytest.raises(TokenRefused) as error:
            await verifier.verify(text)
    # What a log would show of it, or follow from it, holds nothing that was sent.
    assert (error.value.__cause__, error.value.__context__) == (None, None)
    return error.value.reason


@pytest.mark.parametrize("algorithm", KINDS)
async def test_each_algorithm_is_verified_with_a_key_of_its_own(algorithm: str) -> None:
    async with verifying() as verifier:
        assert await verifier.verify(token(algorithm)) == ANN
        assert await refused(verifier, token(algorithm)[:-8] + "AAAAAAAA") == "The signature is wrong."


@pytest.mark.parametrize(
    ("config", "accepted"),
    [(BY_SECRET, {"HS256"}), (BY_URL, {"RS256", "ES256", "EdDSA", "Ed25519"})],
    ids=["secret", "url"],
)
async def test_algorithms_that_nobody_named_are_few(config: JwtConfig, accepted: set[str]) -> None:
    async with verifying(config) as verifier:
        for algorithm in KINDS:
            if algorithm in accepted:
                assert await verifier.verify(token(algorithm)) == ANN
            else:
                assert await refused(verifier, token(algorithm)) == ALG


async def test_no_deprecated_name_of_an_algorithm_is_warned_of_at_each_token() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with verifying() as verifier:
            await verifier.verify(token("EdDSA"))


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": ...}, set()),
        ({"scope": ""}, set()),
        ({"scope": "admin  run openid READ"}, {"admin", "run"}),
        ({"scope": ..., "scp": "read run"}, {"read", "run"}),
        ({"scope": ..., "scp": ["read", "profile"]}, {"read"}),
        ({"scope": ..., "scopes": ["write"]}, {"write"}),
        ({"scope": "read", "scopes": ["write"]}, {"read", "write"}),
    ],
)
async def test_scopes_are_said_in_three_ways_and_those_of_others_count_for_nothing(
    claims: dict[str, Any], scopes: set[str]
) -> None:
    async with verifying() as verifier:
        assert (await verifier.verify(token(**claims))).scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": [AUDIENCE]},
        {"aud": ["another", AUDIENCE]},
        {"exp": int(NOW) + 1},
        {"exp": NOW - 29.5},
        {"nbf": NOW + 29, "iat": NOW + 29},
        {"nbf": 0, "iat": 0.5},
        {"sub": "x" * 200, "tenant": "ü" * 200},
        {"sub": "https://issuer.example/ann smith|👩"},
        {"another": {"nested": [1, 1.5, None]}},
    ],
    ids=str,
)
async def test_good_claims_are_believed(claims: dict[str, Any]) -> None:
    async with verifying() as verifier:
        believed = await verifier.verify(token(**claims))
    said = CLAIMS | claims
    assert (believed.subject, believed.tenant, believed.expires) == (said["sub"], said["tenant"], float(said["exp"]))


@pytest.mark.parametrize(
    "header",
    [
        {"typ": ...},
        {"typ": "at+jwt"},
        {"kid": ...},
        {"x5t": "a thumbprint"},
        {"jku": "https://attacker.example/keys"},
        {"x5u": "file:///etc/passwd"},
        {"jwk": 1},
        {"b64": True},
    ],
    ids=str,
)
async def test_what_else_a_good_token_says_of_itself_is_not_looked_at(header: dict[str, Any]) -> None:
    async with verifying() as verifier:
        assert await verifier.verify(token(header=header)) == ANN


# ------------------------------------------------------------------------------------ what is refused, and why

ALG = "alg is not an algorithm that is accepted."
WRONG = "The signature is wrong."
NO_KEY = "No key that is known has signed the token."
ENCRYPTED = "The token is encrypted."
PARTS = "The token is not of three parts."
HEADER, PAYLOAD = (f"The {part} is not a JSON object with each name once." for part in ("header", "payload"))
DATES = {name: f"{name} is not a date in seconds." for name in ("exp", "nbf", "iat")}
SUB = "sub is missing, or not a text of at most 200 characters."
TENANT = "The claim of the tenant is missing, or not a text of at most 200 characters."
AUD = "aud does not hold this service."


def unsigned(algorithm: object, signature: bytes = b"") -> str:
    return (encode({"alg": algorithm}) + b"." + encode(CLAIMS) + b"." + signature).decode()


def swapped(form: str) -> str:
    """Signed by whoever knows the public key, taken for a secret."""
    public = key("rsa").as_dict(private=False) if form == "JWK" else None
    text = json.dumps(public).encode() if public else RSAKey.as_bytes(key("rsa"), form)  # type: ignore[arg-type]
    secret = OctKey(text, text)
    return signed("HS256", secret, {"alg": "HS256", "kid": "rsa 0"}, CLAIMS)


def attackers(**header: Any) -> str:
    """By a key of the attacker's, which the token itself brings."""
    return signed("RS256", key("rsa", 666), {"alg": "RS256", **header}, CLAIMS)


def raw(payload: str) -> str:
    return signed("RS256", key("rsa"), {"alg": "RS256", "kid": "rsa 0"}, payload.encode())


def raw_header(header: str) -> str:
    return signed("RS256", key("rsa"), header.encode(), CLAIMS)


def cut(at: int, instead: str = "") -> str:
    """A good token whose end is another."""
    return token("ES256")[:at] + instead


def zeros(size: int) -> str:
    return cut(-86) + encode(bytes(size)).decode()


def other_bits() -> str:
    """The same signature in other characters: the last one of 64 bytes has four bits that count for nothing."""
    good = token("ES256")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return good[:-1] + alphabet[alphabet.index(good[-1]) + 1]


def attackers_jwk() -> dict[str, Any]:
    [jwk] = published(key("rsa", 666))
    return jwk


def mixed() -> str:
    bob, ann = token("ES256", sub="bob").split("."), token("ES256").split(".")
    return ".".join([ann[0], bob[1], ann[2]])


def short(secret: bytes) -> OctKey:
    return OctKey(secret, secret)


def other_alg(kind: str, said: str) -> str:
    """By the key of that kind in its own algorithm, said to be by another."""
    own = {"p384": "ES384", "rsa": "RS256"}[kind]
    return signed(own, key(kind), {"alg": said, "kid": key(kind).kid}, CLAIMS)


def with_claim(name: str, value: object, algorithm: str = "RS256", **claims: Any) -> str:
    return token(algorithm, **claims | {name: value})


NO_DATES: list[Any] = [str(int(NOW)), True, None, [], NOW * 1000, -1, 10**400]
NO_NAMES: list[Any] = [..., None, "", 1, True, ["ann"], {}, "x" * 201, "a\0", "a\nb", "\x7f", "\x85", "\ud800"]
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    # no signature
    **{f"alg {name}": (partial(unsigned, name), ALG) for name in ("none", "None", "NONE", "nOnE", "", None)},
    "alg none with a signature": (lambda: unsigned("none", encode(b"x" * 32)), ALG),
    "alg a list": (lambda: unsigned(["RS256"]), ALG),
    "alg missing": (lambda: token(header={"alg": ...}), ALG),
    "alg of another case": (lambda: token(header={"alg": "rs256"}), ALG),
    "alg unknown": (lambda: token(header={"alg": "ES256K"}), ALG),
    "signature stripped": (lambda: cut(-86), WRONG),
    "signature and its dot stripped": (lambda: cut(-87), PARTS),
    "signature truncated": (lambda: cut(-2), WRONG),
    "signature with padding": (lambda: token("ES256") + "==", "The signature is not base64url."),
    "signature with other last bits": (other_bits, "The signature is not base64url."),
    "signature longer": (lambda: token("ES256") + "AAAA", WRONG),
    "r and s zero": (lambda: zeros(64), WRONG),
    "r and s zero, as DER": (lambda: cut(-86) + encode(b"\x30\x06\x02\x01\x00\x02\x01\x00").decode(), WRONG),
    "claims of another token": (mixed, WRONG),
    # a key that is not ours
    "public key as a secret, PEM": (lambda: swapped("PEM"), WRONG),
    "public key as a secret, DER": (lambda: swapped("DER"), WRONG),
    "public key as a secret, JWK": (lambda: swapped("JWK"), WRONG),
    "secret empty": (lambda: signed("HS256", short(b"\0"), {"alg": "HS256"}, CLAIMS), WRONG),
    "attacker's key, our kid": (lambda: attackers(kid="rsa 0"), WRONG),
    "attacker's key, no kid": (attackers, NO_KEY),
    "jku": (lambda: attackers(jku="https://attacker.example/keys", kid="rsa 666"), NO_KEY),
    "jku, our kid": (lambda: attackers(jku="https://attacker.example/keys", kid="rsa 0"), WRONG),
    "x5u": (lambda: attackers(x5u="https://attacker.example/cert", kid="rsa 666"), NO_KEY),
    "x5c": (lambda: attackers(x5c=["MIIB"], kid="rsa 0"), WRONG),
    "jwk": (lambda: attackers(jwk=attackers_jwk()), NO_KEY),
    "jwk, its kid": (lambda: attackers(jwk=attackers_jwk(), kid="rsa 666"), NO_KEY),
    "jwk, our kid": (lambda: attackers(jwk=attackers_jwk() | {"kid": "rsa 0"}, kid="rsa 0"), WRONG),
    # a key of ours that is for something else
    "RS256 by kid of another type": (lambda: token(header={"kid": "p256 0"}), WRONG),
    "ES256 by a key of another curve": (lambda: other_alg("p384", "ES256"), WRONG),
    "EdDSA by kid of an EC key": (lambda: token("EdDSA", header={"kid": "p256 0"}), WRONG),
    "PS256 that is RS256": (lambda: other_alg("rsa", "PS256"), WRONG),
    # tricks with the id of the key
    "kid a path": (lambda: token(header={"kid": "../../../../dev/null"}), NO_KEY),
    "kid an SQL": (lambda: token(header={"kid": "x' UNION SELECT 'key' --"}), NO_KEY),
    "kid a command": (lambda: token(header={"kid": "rsa 0|sleep 10"}), NO_KEY),
    "kid with a NUL": (lambda: token(header={"kid": "rsa 0\0"}), NO_KEY),
    "kid empty": (lambda: token(header={"kid": ""}), NO_KEY),
    "kid huge": (lambda: token(header={"kid": "x" * 257}), "kid is not a string, or too long."),
    "kid null": (lambda: token(header={"kid": None}), "kid is not a string, or too long."),
    "kid a number": (lambda: token(header={"kid": 0}), "kid is not a string, or too long."),
    "kid a list": (lambda: token(header={"kid": ["rsa 0"]}), "kid is not a string, or too long."),
    # what is not understood
    "crit": (lambda: token(header={"crit": ["exp"], "exp": 1}), "crit names what is not understood."),
    "crit empty": (lambda: token(header={"crit": []}), "crit names what is not understood."),
    "b64 false": (lambda: token(header={"b64": False}), "b64 is not for tokens."),
    "b64 false, crit": (lambda: token(header={"b64": False, "crit": ["b64"]}), "crit names what is not understood."),
    # form
    "empty": (str, PARTS),
    "one part": (lambda: "garbage", PARTS),
    "two parts": (lambda: "a.b", PARTS),
    "four parts": (lambda: token() + ".x", PARTS),
    "five parts": (
        lambda: "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAA.AAAA.AAAA",
        ENCRYPTED,
    ),
    "only dots": (lambda: "..", HEADER),
    "8,193 bytes": (lambda: "x" * 8_193, "The token is longer than 8 KiB."),
    "huge and good": (lambda: token(another="x" * 8_192), "The token is longer than 8 KiB."),
    "dots": (lambda: "." * 8_192, PARTS),
    "not ASCII": (lambda: "é" + token(), "The token is not ASCII."),
    "half a character": (lambda: "\ud800" + token(), "The token is not ASCII."),
    "whitespace before": (lambda: " " + token(), "The header is not base64url."),
    "line break after": (lambda: token() + "\n", "The signature is not base64url."),
    "whitespace within": (lambda: token().replace(".", ". ", 1), "The payload is not base64url."),
    "base64 of the other alphabet": (lambda: "+/" + token(), "The header is not base64url."),
    "NUL": (lambda: token() + "\0", "The signature is not base64url."),
    "header twice a name": (lambda: raw_header('{"alg": "none", "alg": "RS256"}'), HEADER),
    "header a list": (lambda: raw_header('["RS256"]'), HEADER),
    "header null": (lambda: raw_header("null"), HEADER),
    "header UTF-16": (lambda: encode('{"alg": "RS256"}'.encode("utf-16")).decode() + ".e30.AA", HEADER),
    "header deep": (lambda: encode(b"[" * 5_000).decode() + ".e30.AA", HEADER),
    "payload twice a name": (lambda: raw(json.dumps(CLAIMS)[:-1] + ', "s\\u0075b": "bob"}'), PAYLOAD),
    "payload twice a name within": (lambda: raw(json.dumps(CLAIMS)[:-1] + ', "x": {"y": 1, "y": 2}}'), PAYLOAD),
    "payload NaN": (lambda: raw(json.dumps(CLAIMS | {"exp": float("nan")})), PAYLOAD),
    "payload Infinity": (lambda: raw(json.dumps(CLAIMS | {"exp": float("inf")})), PAYLOAD),
    "payload a list": (lambda: raw("[]"), PAYLOAD),
    "payload empty": (lambda: raw(""), PAYLOAD),
    "payload a token": (lambda: raw(token("ES256")), PAYLOAD),
    "payload deep": (lambda: raw("[" * 4_000), PAYLOAD),
    "payload not UTF-8": (lambda: signed("RS256", key("rsa"), {"alg": "RS256"}, b'{"sub": "\xff"}'), PAYLOAD),
    "payload a huge number": (lambda: raw('{"exp": ' + "9" * 5_000 + "}"), PAYLOAD),
    # claims
    "expired": (lambda: token(exp=NOW - 30), "exp is over."),
    "expired long ago": (lambda: token(exp=0), "exp is over."),
    "no exp": (lambda: token(exp=...), "exp is missing."),
    **{f"{name} {date!r:.20}": (partial(with_claim, name, date), DATES[name]) for name in DATES for date in NO_DATES},
    "exp beyond all numbers": (lambda: raw(json.dumps(CLAIMS).replace(str(NOW + 600), "1e999")), DATES["exp"]),
    "nbf in the future": (lambda: token(nbf=NOW + 31), "nbf is in the future."),
    "iat in the future": (lambda: token(iat=NOW + 31), "iat is in the future."),
    "iss another": (lambda: token(iss="https://attacker.example"), "iss is not the issuer that is accepted."),
    "iss missing": (lambda: token(iss=...), "iss is not the issuer that is accepted."),
    "iss a list": (lambda: token(iss=[ISSUER]), "iss is not the issuer that is accepted."),
    "iss with a slash": (lambda: token(iss=ISSUER + "/"), "iss is not the issuer that is accepted."),
    "aud another": (lambda: token(aud="another"), AUD),
    "aud that begins as ours": (lambda: token(aud=AUDIENCE + "-admin"), AUD),
    "aud that is a part of ours": (lambda: token(aud=AUDIENCE[:-1]), AUD),
    "aud others": (lambda: token(aud=["another", "swarms"]), AUD),
    "aud none": (lambda: token(aud=[]), AUD),
    "aud missing": (lambda: token(aud=...), AUD),
    "aud an object": (lambda: token(aud={AUDIENCE: 1}), "aud is neither a string nor a list of strings."),
    "aud a mixed list": (lambda: token(aud=[AUDIENCE, 1]), "aud is neither a string nor a list of strings."),
    **{
        f"{name} {text!r:.20}": (partial(with_claim, name, text), reason)
        for name, reason in (("sub", SUB), ("tenant", TENANT))
        for text in NO_NAMES
    },
    "scope a list": (lambda: token(scope=["read"]), "scope is not a string."),
    "scope null": (lambda: token(scope=None), "scope is not a string."),
    "scp a number": (lambda: token(scp=1), "scp is neither a string nor a list of strings."),
    "scopes a mixed list": (lambda: token(scopes=["read", 1]), "scopes is neither a string nor a list of strings."),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    async with verifying() as verifier:
        assert await verifier.verify(token()) == ANN  # it is not that none is believed
        assert await refused(verifier, make()) == reason
        assert await refused(verifier, make()) == reason  # also when it is known


@pytest.mark.parametrize("form", ["PEM", "DER", "JWK"])
async def test_a_published_key_is_no_secret_where_there_is_none(form: str) -> None:
    async with verifying(BY_URL) as verifier:
        assert await refused(verifier, swapped(form)) == ALG


async def test_a_published_secret_is_not_believed() -> None:
    publisher = Publisher(*ALL)
    [jwk] = [OctKey.import_key(SECRET, {"kid": "oct"}).as_dict()]
    publisher.keys += [dict(jwk), dict(jwk) | {"kty": "RSA"}]
    for config in (BY_URL, BOTH):
        async with verifying(config, publisher) as verifier:
            text = signed("RS256", key("rsa"), {"alg": "RS256", "kid": "oct"}, CLAIMS)
            assert await refused(verifier, text) == NO_KEY


@settings(max_examples=400, deadline=None)
@given(
    algorithm=st.sampled_from(["HS256", "RS256", "ES256", "EdDSA"]),
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 127),
)
@example(algorithm="ES256", at=0.9999, byte=ord("A"))
async def test_a_token_with_another_byte_is_refused_or_says_the_same(algorithm: str, at: float, byte: int) -> None:
    good = token(algorithm)
    place = int(at * len(good))
    changed = good[:place] + chr(byte) + good[place + 1 :]
    async with verifying() as verifier:
        if changed == good:
            assert await verifier.verify(changed) == ANN
        else:
            assert await refused(verifier, changed)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.one_of(st.text(max_size=200), st.lists(st.binary(max_size=60), max_size=6)))
async def test_what_is_no_token_is_refused(text: str | list[bytes]) -> None:
    async with verifying() as verifier:
        assert await refused(verifier, text if isinstance(text, str) else ".".join(encode(p).decode() for p in text))


async def test_without_an_issuer_and_an_audience_none_is_asked_for() -> None:
    async with verifying(JwtConfig(secret=SECRET)) as verifier:
        assert await verifier.verify(token("HS256", iss=..., aud=...)) == ANN
        assert await verifier.verify(token("HS256", iss=1, aud=1)) == ANN


async def test_the_tenant_may_be_in_another_claim() -> None:
    claim = "https://swarm.example/tenant"
    async with verifying(JwtConfig(secret=SECRET, tenant_claim=claim)) as verifier:
        assert (await verifier.verify(with_claim(claim, "acme", "HS256", tenant=...))).tenant == "acme"
        assert await refused(verifier, token("HS256")) == TENANT


async def test_ids_and_types_of_keys_may_be_the_same() -> None:
    """A token without an id is by one of those that fit; an id may be of several keys."""
    first, second, curved = key("rsa"), key("rsa", 1), key("p256")
    publisher = Publisher()
    publisher.keys = published(first, second, curved, kid="same")
    async with verifying(BY_URL, publisher) as verifier:
        for header in ({"kid": "same"}, {"kid": ...}):
            for number in (0, 1):
                assert await verifier.verify(token(header=header, number=number)) == ANN
            assert await verifier.verify(token("ES256", header=header)) == ANN
        assert await refused(verifier, token(header={"kid": "same"}, number=2)) == WRONG
        assert await refused(verifier, token(header={"kid": ...}, number=2)) == NO_KEY


# ------------------------------------------------------------------------------------------ tokens that are known


async def test_a_token_that_is_known_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _counted(monkeypatch)
    async with verifying() as verifier:
        for algorithm in ("HS256", "RS256"):
            text = token(algorithm)
            for _ in range(3):
                assert await verifier.verify(text) == ANN
    assert seen == ["HS256", "RS256"]


async def test_a_known_token_expires() -> None:
    time = Time()
    async with verifying(BY_URL, time=time) as verifier:
        text = token(exp=NOW + 10)
        await verifier.verify(text)
        time.go_on(39)
        await verifier.verify(text)
        time.go_on(1)
        assert await refused(verifier, text) == "exp is over."


async def test_a_known_token_is_refused_once_its_key_is_gone() -> None:
    time, publisher = Time(), Publisher(key("rsa"), key("rsa", 1))
    async with verifying(BY_URL, publisher, time) as verifier:
        text = token()
        await verifier.verify(text)
        publisher.keys = published(key("rsa", 1))
        await until(lambda: time.until_next() == 480)
        time.go_on(480)
        await until(lambda: publisher.fetches == 2 and time.until_next() == 480)
        assert await refused(verifier, text) == NO_KEY
        assert await verifier.verify(token(number=1)) == ANN


async def test_a_known_token_is_not_believed_when_keys_are_too_old() -> None:
    time, publisher = Time(), Publisher(key("rsa"))
    async with verifying(BY_URL, publisher, time) as verifier:
        text = token(exp=NOW + 1_000_000)
        await verifier.verify(text)
        publisher.fail()
        time.go_on(86_399)
        await verifier.verify(text)
        time.go_on(1)
        with pytest.raises(KeysUnavailable):
            await verifier.verify(text)


async def test_only_so_many_tokens_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt, "_MOST_VERIFIED", 3)
    seen = _counted(monkeypatch)
    async with verifying() as verifier:
        texts = [token("HS256", jti=n) for n in range(4)]
        for text in (*texts[:3], texts[0], texts[3], texts[0]):
            await verifier.verify(text)
        assert len(seen) == 4
        await verifier.verify(texts[1])  # the one that was not used for longest
        assert len(seen) == 5


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The algorithms of the signatures that are verified from now on."""
    seen: list[str] = []
    verify = jwt._is_signed

    def counting(parts: Any, algorithm: str, key: Any) -> bool:
        seen.append(algorithm)
        return verify(parts, algorithm, key)

    monkeypatch.setattr(jwt, "_is_signed", counting)
    return seen


async def test_a_verifier_that_was_not_started_says_that_it_cannot_know() -> None:
    verifier = JwtVerifier(BY_URL, Publisher(*ALL).fetch)
    with pytest.raises(KeysUnavailable):
        await verifier.verify(token())
