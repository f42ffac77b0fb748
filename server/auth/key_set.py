"""The keys of a JWK set that may verify signatures (RFC 7517), and which of them may have signed a token."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key
from joserfc.jws import JWSRegistry
from joserfc.util import base64_to_int
from msgspec import Struct

log = structlog.get_logger(__name__)

_MOST = 64  # keys: a token that names none is tried with each that fits
_LEAST_RSA = 2048  # bits (RFC 7518, 3.3)
_CURVES = {"EC": {"P-256", "P-384", "P-521"}, "OKP": {"Ed25519"}}
# What a public key is made of. Nothing else of a JWK is looked at: a certificate or a URL in it is not followed.
_MEMBERS = ("kty", "kid", "alg", "n", "e", "crv", "x", "y")


class _Document(Struct):
    keys: list[Any]


class KeySet:
    """Keys by the algorithms that they fit, and by their ids."""

    def __init__(self, keys: Collection[Key], algorithms: Collection[str]) -> None:
        self._ids = {key.kid for key in keys}
        self._fitting: dict[str, list[Key]] = {name: [key for key in keys if _fits(key, name)] for name in algorithms}

    @classmethod
    def read(cls, document: bytes, algorithms: Collection[str]) -> KeySet:
        """Raises `ValueError` for what is not a JWK set.

        A key in it that cannot be used is left out, as RFC 7517, 5, wishes; so are symmetric and private ones (whoever
        published those has given them away), RSA keys of less than 2048 bits, and those for encryption.
        """
        try:
            found = msgspec.json.decode(document, type=_Document).keys
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError("it is not a JWK set") from error
        keys = [key for key in map(_public_key, found) if key is not None]
        if len(keys) < len(found) or len(keys) > _MOST:
            log.warning("some keys of the JWK set are not used", found=len(found), used=min(len(keys), _MOST))
        return cls(keys[:_MOST], algorithms)

    def __contains__(self, kid: str | None) -> bool:
        """Whether a key has this id; none has `None`."""
        return kid is not None and kid in self._ids

    def candidates(self, algorithm: str, kid: str | None) -> list[Key]:
        """Those that may have signed: they fit the algorithm, and have this id, which more than one may.

        A token that names none may be signed by any that fits.
        """
        fitting = self._fitting[algorithm]
        return fitting if kid is None else [key for key in fitting if key.kid == kid]


def _fits(key: Key, algorithm: str) -> bool:
    """By type, by curve, and by the algorithm that the key says it is for."""
    try:
        JWSRegistry.algorithms[algorithm].check_key(key)
    except JoseError:
        return False
    return True


def _public_key(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        if jwk["kty"] == "RSA":
            if base64_to_int(jwk["n"]).bit_length() < _LEAST_RSA:
                return None
        elif jwk["crv"] not in _CURVES[jwk["kty"]]:
            return None
        return JWKRegistry.import_key({member: jwk[member] for member in _MEMBERS if member in jwk})
    except (JoseError, UnsupportedAlgorithm, LookupError, TypeError, ValueError):
        return None  # of a kind that is not known, or broken
