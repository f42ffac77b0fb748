"""What a configuration of tokens refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from joserfc.jwk import RSAKey

from server.auth.jwt_config import JwtConfig
from tests.server.auth.issuer import SECRET, URL, key


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: JwtConfig(secret="x" * 31), "secret must be of 32 bytes"),
        (lambda: JwtConfig(secret=""), "secret must be of 32 bytes"),
        (lambda: JwtConfig(secret="x" * 63, algorithms=("HS256", "HS512")), "secret must be of 64 bytes"),
        (lambda: JwtConfig(secret=RSAKey.as_bytes(key("rsa")).decode()), "secret must not be a public key"),  # type: ignore[arg-type]
        (lambda: JwtConfig(secret=SECRET, algorithms=("none",)), "algorithms"),
        (lambda: JwtConfig(secret=SECRET, algorithms=("HS256", "None")), "algorithms"),
        (lambda: JwtConfig(secret=SECRET, algorithms=("RS256",)), "algorithms"),
        (lambda: JwtConfig(secret=SECRET, algorithms=("HS256", "RS256")), "algorithms"),
        (lambda: JwtConfig(jwks_url=URL, algorithms=("HS256",)), "algorithms"),
        (lambda: JwtConfig(jwks_url=URL, algorithms=("RS256", "HS256")), "algorithms"),
        (lambda: JwtConfig(secret=SECRET, jwks_url=URL, algorithms=("RS256",)), "algorithms"),
        (lambda: JwtConfig(algorithms=("RS256",)), "algorithms"),
        (lambda: JwtConfig(jwks_url="http://issuer.example/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="http://localhost.example/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="http://127.0.0.1@issuer.example/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="https://user:password@issuer.example/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="file:///keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="https:///keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="https:keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url="issuer.example/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url=""), "jwks_url"),
        (lambda: JwtConfig(jwks_url="https://[::1/keys"), "jwks_url"),
        (lambda: JwtConfig(jwks_url=URL, tenant_claim=""), "tenant_claim"),
        (lambda: JwtConfig(jwks_url=URL, leeway=-1), "leeway"),
        (lambda: JwtConfig(jwks_url=URL, leeway=float("nan")), "leeway"),
    ],
)
def test_what_is_not_safe_is_not_configured(made: Callable[[], JwtConfig], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}") as error:
        made()
    assert "xxx" not in str(error.value)
    assert "password@" not in str(error.value)


def test_what_is_safe_is() -> None:
    assert not JwtConfig().configured
    assert JwtConfig(secret=SECRET).configured
    assert JwtConfig(secret="ü" * 16).configured  # bytes count, not characters
    for host in ("127.0.0.1:8080", "localhost", "[::1]:80", "127.3.2.1"):
        assert JwtConfig(jwks_url=f"http://{host}/keys").configured
    assert SECRET not in repr(JwtConfig(secret=SECRET))


def test_who_has_no_tokens_does_not_pay_for_them() -> None:
    """Cryptography takes a tenth of a second, and ten megabytes of each worker."""
    code = (
        "import sys, server.auth.claims; from server.auth.jwt_config import JwtConfig; print('joserfc' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "False\n"
