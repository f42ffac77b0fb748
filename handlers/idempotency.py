"""The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

import hashlib
import re

from aiohttp import web

from handlers.problem import Fault, invalid
from storage.idempotency import WriteKey

HEADER = "Idempotency-Key"
# Said on an answer that was stored by an earlier request with the same key.
REPLAYED = "Idempotency-Replayed"

# A key is a row of the database for a day: its length is bounded, and it reads the same in every log.
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def write_key(request: web.Request, principal: str, route: str, body: bytes) -> WriteKey | None:
    """The request's key in its scope, or None without the header. Raises 422.

    The fingerprint covers the path and the body: the same key on another path of the same route is another request.
    A streamed body is not in it; whoever reads the stream keeps account of it.
    """
    given = request.headers.getall(HEADER, None)
    if given is None:
        return None
    if len(given) > 1:
        raise invalid(Fault("must be given only once", header=HEADER))
    if _KEY.fullmatch(given[0]) is None:
        raise invalid(Fault("must be 1 to 255 visible ASCII characters", header=HEADER))
    digest = hashlib.sha256(request.rel_url.raw_path.encode())
    digest.update(b"\n")
    digest.update(body)
    return WriteKey(principal=principal, route=route, key=given[0], fingerprint=digest.hexdigest())


def refuse_key(request: web.Request) -> None:
    """Raises 422 for a key where none is kept: nobody is to believe that the request is safe to repeat."""
    if HEADER in request.headers:
        raise invalid(Fault("cannot be used here: the answer holds a secret, which is not stored", header=HEADER))
