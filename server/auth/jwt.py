"""JSON Web Tokens as bearer credentials (RFC 7519, RFC 8725): whom one speaks for, or why it is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode
from msgspec import Struct

from server.auth.claims import Claims, TokenRefused
from server.auth.jwks import Fetch, Jwks
from server.auth.jwt_config import PUBLISHED, SECRET_BYTES, JwtConfig
from server.auth.key_set import KeySet

_LONGEST = 8 * 1024  # bytes of a token: more do not fit into most servers' headers either
_LONGEST_KID = 256
_LONGEST_NAME = 200  # characters of a subject or a tenant
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters
_LATEST = 253_402_300_799  # the end of the year 9999: a date beyond it is in milliseconds, or a mistake
_MOST_VERIFIED = 4096  # tokens: some megabytes
_SCOPES = frozenset({"read", "write", "run", "admin"})


class _Parts(Struct, frozen=True):
    """A token in compact form (RFC 7515, 7.1)."""

    header: bytes
    payload: bytes
    signed: bytes  # header and payload, as they were sent
    signature: bytes


class JwtVerifier:
    """Says whom a token speaks for.

    A key comes from the configuration alone: `jku`, `jwk`, `x5u` and `x5c` are neither followed nor looked at. Issuers
    send them in good faith, so a token that has them is not refused for it. Tokens that were verified are known again
    by their hash, until they expire or the keys change: verifying a signature costs as much as a small request.
    """

    def __init__(
        self,
        config: JwtConfig,
        fetch: Fetch,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._clock = clock
        self._secret = None if config.secret is None else OctKey.import_key(config.secret_bytes)
        self._jwks = (
            None
            if config.jwks_url is None
            else Jwks(config.jwks_url, config.allowed & PUBLISHED, fetch, clock=clock, sleep=sleep)
        )
        self._verified: OrderedDict[bytes, tuple[Claims, KeySet | None]] = OrderedDict()

    async def start(self) -> None:
        """Begins to fetch keys; a token that comes before they are there waits for them."""
        if self._jwks is not None:
            await self._jwks.start()

    async def close(self) -> None:
        if self._jwks is not None:
            await self._jwks.close()

    async def verify(self, token: str) -> Claims:
        """Raises `TokenRefused`, and `KeysUnavailable` where it cannot be said whether the token is good."""
        if len(token) > _LONGEST:
            raise TokenRefused("The token is longer than 8 KiB.")
        if not token.isascii():
            raise TokenRefused("The token is not ASCII.")
        encoded = token.encode()
        digest = hashlib.sha256(encoded).digest()
        known = self._verified.get(digest)
        if known is not None and (known[1] is None or (self._jwks is not None and known[1] is self._jwks.current)):
            self._verified.move_to_end(digest)
            self._refuse_expired(known[0].expires)
            return known[0]
        parts = _split(encoded)
        keys = await self._verify_signature(parts)
        claims = self._claims(_members(parts.payload, "payload"))
        self._verified[digest] = claims, keys
        if len(self._verified) > _MOST_VERIFIED:
            self._verified.popitem(last=False)
        return claims

    async def _verify_signature(self, parts: _Parts) -> KeySet | None:
        """Returns the keys that it was found in; none for the secret."""
        header = _members(parts.header, "header")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._config.allowed:
            raise TokenRefused("alg is not an algorithm that is accepted.")
        if "crit" in header:  # there is no extension that is understood here (RFC 7515, 4.1.11)
            raise TokenRefused("crit names what is not understood.")
        if header.get("b64", True) is not True:  # RFC 7797, 7
            raise TokenRefused("b64 is not for tokens.")
        kid = header.get("kid")
        if "kid" in header and not (isinstance(kid, str) and len(kid) <= _LONGEST_KID):
            raise TokenRefused("kid is not a string, or too long.")
        if algorithm in SECRET_BYTES:
            assert self._secret is not None
            if not _is_signed(parts, algorithm, self._secret):
                raise TokenRefused("The signature is wrong.")
            return None
        assert self._jwks is not None
        begun = self._jwks.begun
        keys = await self._jwks.keys()
        while True:
            if any(_is_signed(parts, algorithm, key) for key in keys.candidates(algorithm, kid)):
                return keys
            if kid in keys:
                raise TokenRefused("The signature is wrong.")
            newer = await self._jwks.newer(kid, begun)
            if newer is None:
                raise TokenRefused("No key that is known has signed the token.")
            keys = newer

    def _claims(self, members: dict[str, Any]) -> Claims:
        config = self._config
        if config.issuer is not None and members.get("iss") != config.issuer:
            raise TokenRefused("iss is not the issuer that is accepted.")
        if config.audience is not None and config.audience not in _strings(members, "aud"):
            raise TokenRefused("aud does not hold this service.")
        expires = _date(members, "exp")
        if expires is None:
            raise TokenRefused("exp is missing.")
        self._refuse_expired(expires)
        for name in ("nbf", "iat"):
            begins = _date(members, name)
            if begins is not None and begins > self._clock() + config.leeway:
                raise TokenRefused(f"{name} is in the future.")
        return Claims(
            subject=_name(members, "sub", "sub"),
            tenant=_name(members, config.tenant_claim, "The claim of the tenant"),
            scopes=_scopes(members),
            expires=expires,
        )

    def _refuse_expired(self, expires: float) -> None:
        if self._clock() >= expires + self._config.leeway:
            raise TokenRefused("exp is over.")


def _split(token: bytes) -> _Parts:
    parts = token.split(b".")
    if len(parts) == 5:
        raise TokenRefused("The token is encrypted.")
    if len(parts) != 3:
        raise TokenRefused("The token is not of three parts.")
    header, payload, signature = (
        _decoded(part, name) for part, name in zip(parts, ("header", "payload", "signature"), strict=True)
    )
    return _Parts(header, payload, token[: -len(parts[2]) - 1], signature)


def _decoded(part: bytes, name: str) -> bytes:
    """base64url in its one form, without padding (RFC 7515, 2): no second token is as good as the first."""
    try:
        return urlsafe_b64decode(part)
    except ValueError:
        pass  # it holds what was sent
    raise TokenRefused(f"The {name} is not base64url.")


def _members(part: bytes, name: str) -> dict[str, Any]:
    """A JSON object, in which nothing stands twice (RFC 7515, 4; RFC 7519, 4)."""
    try:
        members = json.loads(part.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        members = None  # the error holds what was sent
    if not isinstance(members, dict):
        raise TokenRefused(f"The {name} is not a JSON object with each name once.")
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError
    return members


def _refuse_constant(_: str) -> None:
    """NaN and the infinite are no JSON."""
    raise ValueError


def _is_signed(parts: _Parts, algorithm: str, key: Key) -> bool:
    return JWSRegistry.algorithms[algorithm].verify(parts.signed, parts.signature, key)


def _date(members: dict[str, Any], name: str) -> float | None:
    """Unix seconds (RFC 7519, 2: NumericDate)."""
    if name not in members:
        return None
    date = members[name]
    if isinstance(date, bool) or not isinstance(date, int | float) or not 0 <= date <= _LATEST:
        raise TokenRefused(f"{name} is not a date in seconds.")
    return float(date)


def _name(members: dict[str, Any], claim: str, called: str) -> str:
    name = members.get(claim)
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or _UNFIT.search(name):
        raise TokenRefused(f"{called} is missing, or not a text of at most {_LONGEST_NAME} characters.")
    return name


def _scopes(members: dict[str, Any]) -> frozenset[str]:
    """Of `scope` (RFC 8693, 4.2), and of `scp` and `scopes`, which some issuers write instead."""
    if not isinstance(members.get("scope", ""), str):
        raise TokenRefused("scope is not a string.")
    return _SCOPES.intersection(
        scope for claim in ("scope", "scp", "scopes") for said in _strings(members, claim) for scope in said.split(" ")
    )


def _strings(members: dict[str, Any], claim: str) -> list[str]:
    """What is said as one string or as a list of them."""
    said = members.get(claim, [])
    strings = [said] if isinstance(said, str) else said
    if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
        raise TokenRefused(f"{claim} is neither a string nor a list of strings.")
    return strings
