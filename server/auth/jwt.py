"""JSON Web Tokens as bearer credentials (RFC 7519, RFC 8725): whom one speaks for, or why it is refused."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode
from msgspec import Struct
from yarl import URL

from server.auth.jwks import Fetch, Jwks
from server.auth.key_set import KeySet

_LONGEST = 8 * 1024  # bytes of a token: more do not fit into most servers' headers either
_LONGEST_KID = 256
_LONGEST_NAME = 200  # characters of a subject or a tenant
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters
_LATEST = 253_402_300_799  # the end of the year 9999: a date beyond it is in milliseconds, or a mistake
_MOST_VERIFIED = 4096  # tokens: some megabytes
_SCOPES = frozenset({"read", "write", "run", "admin"})

_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: as long as the hash
_PUBLISHED = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
_DEFAULT_PUBLISHED = ("RS256", "ES256", "EdDSA", "Ed25519")  # the last two are one (RFC 9864)


class TokenRefused(Exception):
    """`reason` is a short sentence that names the claim or the part that is wrong, and holds nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class JwtConfig:
    """Whose tokens are believed. Raises `ValueError`, which names the field, for what would not be safe.

    Tokens by `secret` are HS*, tokens by a key from `jwks_url` are not: which algorithm a token names decides which of
    the two it is verified with, so that a published key is never taken for a secret (RFC 8725, 2.1).
    """

    secret: str | None = field(default=None, repr=False)
    jwks_url: str | None = None  # https, or http on loopback
    issuer: str | None = None  # `iss` is this, when set
    audience: str | None = None  # `aud` is or holds this, when set
    algorithms: tuple[str, ...] = ()  # none: HS256 for a secret, RS256, ES256 and EdDSA (Ed25519) for a URL
    tenant_claim: str = "tenant"
    leeway: float = 30.0  # seconds that clocks may differ by

    def __post_init__(self) -> None:
        for name in self.algorithms:
            if name not in _PUBLISHED and name not in _SECRET_BYTES:
                raise ValueError("algorithms must be of HS*, RS*, PS*, ES*, EdDSA and Ed25519")
        symmetric = self.allowed & _SECRET_BYTES.keys()
        if bool(symmetric) != (self.secret is not None):
            raise ValueError("algorithms must hold an HS* one when there is a secret, and only then")
        if bool(self.allowed & _PUBLISHED) != (self.jwks_url is not None):
            raise ValueError("algorithms must hold one that is not HS* when there is a jwks_url, and only then")
        if self.secret is not None:
            least = max(_SECRET_BYTES[name] for name in symmetric)
            if len(_bytes(self.secret)) < least:
                raise ValueError(f"secret must be of {least} bytes or more")
            _secret_key(self.secret)
        if self.jwks_url is not None and not _is_safe(self.jwks_url):
            raise ValueError("jwks_url must be an https URL without a password, or an http one on loopback")
        if not self.tenant_claim:
            raise ValueError("tenant_claim must not be empty")
        if not (math.isfinite(self.leeway) and self.leeway >= 0):
            raise ValueError("leeway must be seconds, 0 or more")

    @property
    def configured(self) -> bool:
        return self.secret is not None or self.jwks_url is not None

    @property
    def allowed(self) -> frozenset[str]:
        """The algorithms that a token may be signed with."""
        if self.algorithms:
            return frozenset(self.algorithms)
        symmetric = ("HS256",) if self.secret is not None else ()
        return frozenset(symmetric + (_DEFAULT_PUBLISHED if self.jwks_url is not None else ()))


class Claims(Struct, frozen=True):
    """What is believed: who it is, whose data they see, what they may do, and until when (`exp`, in Unix seconds).

    A token is accepted for `leeway` more seconds, lest it depend on whose clock is ahead.
    """

    subject: str
    tenant: str
    scopes: frozenset[str]
    expires: float


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
        self._secret = None if config.secret is None else _secret_key(config.secret)
        self._jwks = (
            None
            if config.jwks_url is None
            else Jwks(config.jwks_url, config.allowed & _PUBLISHED, fetch, clock=clock, sleep=sleep)
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
        if algorithm in _SECRET_BYTES:
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


def _bytes(secret: str) -> bytes:
    return secret.encode(errors="surrogateescape")  # what is not UTF-8 in the environment is itself again


def _secret_key(secret: str) -> OctKey:
    try:
        return OctKey.import_key(_bytes(secret))
    except ValueError:
        pass  # its error is not shown: nothing of a secret is
    raise ValueError("secret must not be a public key or a certificate")


def _is_safe(url: str) -> bool:
    """Whether what comes from there can be believed: nobody between may change it."""
    try:
        parsed = URL(url)
    except ValueError:
        return False
    if not parsed.host or parsed.user is not None or parsed.password is not None:
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and _is_loopback(parsed.host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
