"""An issuer of tokens: its keys, what it publishes of them, and tokens as it would never make them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64encode

from server.auth.jwks import Fetched, FetchFailed

NOW = 1_750_000_000.0
SECRET = "a secret of the operator's own, of 64 bytes, as HS512 wishes it."
ISSUER, AUDIENCE, URL = "https://issuer.example", "swarm", "https://issuer.example/keys"
KINDS: dict[str, Literal["rsa", "p256", "p384", "p521", "ed25519", "secret"]] = {
    "RS256": "rsa",
    "RS384": "rsa",
    "RS512": "rsa",
    "PS256": "rsa",
    "PS384": "rsa",
    "PS512": "rsa",
    "ES256": "p256",
    "ES384": "p384",
    "ES512": "p521",
    "EdDSA": "ed25519",
    "Ed25519": "ed25519",
    "HS256": "secret",
    "HS384": "secret",
    "HS512": "secret",
}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "ann",
    "tenant": "acme",
    "scope": "read write",
    "exp": NOW + 600,
}


def key(kind: str, number: int = 0) -> Key:
    """A private key of that kind, or the secret; `number` tells it from others of the kind. Its id is of both."""
    return _key(kind, number)


@cache
def _key(kind: str, number: int) -> Key:
    kid = f"{kind} {number}"
    match kind:
        case "rsa":
            return RSAKey.generate_key(2048, {"kid": kid})
        case "p256" | "p384" | "p521":
            curves: dict[str, Any] = {"p256": "P-256", "p384": "P-384", "p521": "P-521"}
            return ECKey.generate_key(curves[kind], {"kid": kid})
        case "ed25519":
            return OKPKey.generate_key("Ed25519", {"kid": kid})
    return OctKey.import_key(SECRET)


def published(*keys: Key, **members: Any) -> list[dict[str, Any]]:
    return [{**key.as_dict(private=False), **members} for key in keys]


def encode(part: object) -> bytes:
    """Bytes are taken as they are, all else as JSON."""
    return urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())


def signed(algorithm: str, signing: Key, header: object, payload: object) -> str:
    text = encode(header) + b"." + encode(payload)
    return (text + b"." + urlsafe_b64encode(JWSRegistry.algorithms[algorithm].sign(text, signing))).decode()


def token(algorithm: str = "RS256", *, header: dict[str, Any] | None = None, number: int = 0, **claims: Any) -> str:
    """A good token, but for these members of its header and these claims; those that are `...` are left out."""
    signing = key(KINDS[algorithm], number)
    names = {"alg": algorithm, "typ": "JWT"} | ({} if algorithm.startswith("HS") else {"kid": signing.kid})
    return signed(algorithm, signing, without(names | (header or {})), without(CLAIMS | claims))


def without(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not ...}


class Publisher:
    """What is at the URL, and how often it was fetched. A fetch of it waits while it is `held`."""

    def __init__(self, *keys: Key) -> None:
        self.keys = published(*keys)
        self.max_age: float | None = None
        self.fetches = 0
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def fetch(self, url: str) -> Fetched:
        assert url == URL
        self.fetches += 1
        answer = Fetched(json.dumps({"keys": self.keys}).encode(), self.max_age)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return answer

    def fail(self) -> None:
        self.error = FetchFailed("status 503")


class Time:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self.now = NOW
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        sleeper = self.now + seconds, asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    def until_next(self) -> float | None:
        """Seconds until the next sleeper wakes up."""
        return min((until - self.now for until, waits in self._sleepers if not waits.done()), default=None)

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        for until, waits in self._sleepers:
            if until <= self.now and not waits.done():
                waits.set_result(None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
