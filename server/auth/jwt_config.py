"""Whose JSON Web Tokens are believed. What verifies them is imported where there are any, not for this."""

from __future__ import annotations

import hashlib
import ipaddress
import math
from dataclasses import dataclass, field

from yarl import URL

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518, 3.2: as long as the hash
PUBLISHED = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
_DEFAULT_PUBLISHED = ("RS256", "ES256", "EdDSA", "Ed25519")  # the last two are one (RFC 9864)


@dataclass(frozen=True)
class JwtConfig:
    """Whose tokens are believed. Raises `ValueError`, which names the field, for what would not be safe.

    Tokens by `secret` are HS*, tokens by a key from `jwks_url` are not: which algorithm a token names decides which of
    the two it is verified with, so that a published key is never taken for a secret (RFC 8725, 2.1).
    """

    secret: str | None = field(default=None, repr=False)
    jwks_url: str | None = field(default=None, repr=False)  # its query may hold a secret; https, or http on loopback
    issuer: str | None = None  # `iss` is this, when set
    audience: str | None = None  # `aud` is or holds this, when set
    algorithms: tuple[str, ...] = ()  # none: HS256 for a secret, RS256, ES256 and EdDSA (Ed25519) for a URL
    tenant_claim: str = "tenant"
    leeway: float = 30.0  # seconds that clocks may differ by

    def __post_init__(self) -> None:
        for name in self.algorithms:
            if name not in PUBLISHED and name not in SECRET_BYTES:
                raise ValueError("algorithms must be of HS*, RS*, PS*, ES*, EdDSA and Ed25519")
        symmetric = self.allowed & SECRET_BYTES.keys()
        if bool(symmetric) != (self.secret is not None):
            raise ValueError("algorithms must hold an HS* one when there is a secret, and only then")
        if bool(self.allowed & PUBLISHED) != (self.jwks_url is not None):
            raise ValueError("algorithms must hold one that is not HS* when there is a jwks_url, and only then")
        if self.secret is not None:
            least = max(SECRET_BYTES[name] for name in symmetric)
            if len(self.secret_bytes) < least:
                raise ValueError(f"secret must be of {least} bytes or more")
            _refuse_public_key(self.secret_bytes)
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
    def issuers(self) -> str:
        """Another text for other issuers: a digest of what says whose tokens are believed."""
        said = f"{self.secret}\n{self.jwks_url}\n{self.issuer}\n{self.audience}".encode(errors="surrogateescape")
        return hashlib.sha256(said).hexdigest()[:16]

    @property
    def secret_bytes(self) -> bytes:
        """The secret, which there is. What is not UTF-8 in the environment is itself again."""
        assert self.secret is not None
        return self.secret.encode(errors="surrogateescape")

    @property
    def allowed(self) -> frozenset[str]:
        """The algorithms that a token may be signed with."""
        if self.algorithms:
            return frozenset(self.algorithms)
        symmetric = ("HS256",) if self.secret is not None else ()
        return frozenset(symmetric + (_DEFAULT_PUBLISHED if self.jwks_url is not None else ()))


def _refuse_public_key(secret: bytes) -> None:
    from joserfc.jwk import OctKey

    try:
        OctKey.import_key(secret)
    except ValueError:
        pass  # its error is not shown: nothing of a secret is
    else:
        return
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
