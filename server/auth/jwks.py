"""The keys that an issuer of tokens publishes at a URL (RFC 7517): fetched, kept, and fetched again before they age."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar
from msgspec import Struct

from server.auth.claims import KeysUnavailable
from server.auth.key_set import KeySet

log = structlog.get_logger(__name__)

_FETCH_SECONDS = 5.0
_LARGEST = 256 * 1024  # bytes of a JWK set: some hundreds of keys
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,10})", re.IGNORECASE)

_AGE = 600.0  # seconds that keys are fresh for when the answer does not say
_LEAST_AGE, _MOST_AGE = 60.0, 86_400.0
_REFRESHED_AT = 0.8  # of that age: new keys are here before the old ones are too old
_STALE = 86_400.0  # seconds since they were fetched, after which keys are not believed any more
_RETRY = 10.0  # seconds after a fetch that failed
_LOOKUP_INTERVAL = 10.0  # seconds from one fetch for the sake of an unknown key to the next
_MOST_WAITING = 100  # tokens by unknown keys that wait for it: whoever makes such up holds no more requests than these


class FetchFailed(Exception):
    """No JWK set came back. The message says why, in a few words."""


class Fetched(Struct, frozen=True):
    """An answer, and for how many seconds it says that it may be kept."""

    body: bytes
    max_age: float | None = None


Fetch = Callable[[str], Awaitable[Fetched]]
"""Gets what is at a URL, in bounded time and of bounded size. Raises `FetchFailed`."""


async def fetch_by_http(url: str) -> Fetched:
    """A `Fetch`: within 5 s and 256 KiB, without redirects (the operator named one place), cookies and proxies."""
    try:
        async with (
            ClientSession(
                timeout=ClientTimeout(total=_FETCH_SECONDS),
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,  # what is small on the wire is small
            ) as session,
            session.get(
                url,
                allow_redirects=False,
                headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
            ) as response,
        ):
            if response.status != 200:
                raise FetchFailed(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _LARGEST:
                    raise FetchFailed("it is too large")
            max_age = _MAX_AGE.search(",".join(response.headers.getall("Cache-Control", ())))
            return Fetched(bytes(body), float(max_age[1]) if max_age else None)
    except TimeoutError:
        raise FetchFailed("it took too long") from None
    except (ClientError, OSError) as error:
        raise FetchFailed(type(error).__name__) from error


class Jwks:
    """The keys at a URL, as they are now.

    One task fetches them, in the background: nobody's cancelled request ends a fetch, and no two run at once. When one
    fails, the keys that are there stay, for up to 24 h. `sleep` and `clock` are of the same time; by that of day, keys
    age also while a machine is suspended.
    """

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        fetch: Fetch,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._url = url
        self._algorithms = algorithms
        self._fetch = fetch
        self._clock = clock
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        self._keys: KeySet | None = None
        self._body = b""
        self._fetched_at = 0.0
        self._failed = False
        self._begun = self._ended = 0  # fetches: they are equal when none runs
        self._turn = asyncio.Event()  # set when a fetch ends; each has its own
        self._asked = asyncio.Event()  # for a fetch now
        self._waiting = 0
        self._looked_at = float("-inf")  # when the last fetch began that was asked for
        self._missed: set[str | None] = set()  # ids that the last fetch has been asked for, and did not bring

    async def start(self) -> None:
        """Begins the first fetch, and does not wait for it."""
        self._begun += 1
        self._task = asyncio.create_task(self._run(), name="fetch JWK set")

    async def close(self) -> None:
        """Whoever waits for keys has `KeysUnavailable`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._failed = True
        self._end_turn()

    @property
    def begun(self) -> int:
        """How many fetches have begun."""
        return self._begun

    @property
    def current(self) -> KeySet | None:
        """The keys, or `None` when there are none that may be believed. The same object until they change."""
        return self._keys if self._clock() - self._fetched_at < _STALE else None

    async def keys(self) -> KeySet:
        """The keys as they are known; the first time, once they are. Raises `KeysUnavailable`."""
        if self.current is None and self._begun > self._ended:
            await self._turn.wait()
        return self._available()

    async def newer(self, kid: str | None, begun: int) -> KeySet | None:
        """The keys after a fetch for the sake of `kid`, or `None`: it is not among them, and no fetch would tell more.

        `begun` is how many had begun when its token came. One that begins after that brings each key whose tokens are
        in use: the caller asks again until there has been such a one, which all who ask share. It waits for up to 10 s
        after the one before, so that whoever makes up ids cannot have the URL asked more often than that; an id that
        was looked for in vain since then is not waited for. Raises `KeysUnavailable`.
        """
        if self._ended > begun:
            self._missed.add(kid)
            return None
        if self._clock() - self._looked_at < _LOOKUP_INTERVAL:
            if kid in self._missed:
                return None
            if self._failed:
                raise KeysUnavailable
        if self._waiting >= _MOST_WAITING or self._task is None:
            raise KeysUnavailable
        if self._begun == self._ended:
            self._asked.set()
        self._waiting += 1
        try:
            await self._turn.wait()
        finally:
            self._waiting -= 1
        if self._failed:
            raise KeysUnavailable
        return self._available()

    def _available(self) -> KeySet:
        keys = self.current
        if keys is None:
            raise KeysUnavailable
        return keys

    async def _run(self) -> None:
        while True:
            due = await self._refresh()
            self._end_turn()
            await self._pause(due)
            self._begun += 1

    async def _refresh(self) -> float:
        """Fetches once. Returns after how many seconds to do it again."""
        begun_at = self._clock()
        try:
            fetched = await self._fetch(self._url)
            if self._keys is None or fetched.body != self._body:
                self._keys = KeySet.read(fetched.body, self._algorithms)
                self._body = fetched.body
                log.info("the JWK set is new or has changed")
        except (FetchFailed, ValueError) as error:
            log.warning("the JWK set could not be fetched", error=str(error))
            self._failed = True
        except Exception:
            # The task must not end: everybody waits for it.
            log.exception("fetching the JWK set failed")
            self._failed = True
        else:
            self._failed = False
            self._fetched_at = begun_at
            age = _AGE if fetched.max_age is None else min(max(fetched.max_age, _LEAST_AGE), _MOST_AGE)
            return age * _REFRESHED_AT
        return _RETRY

    def _end_turn(self) -> None:
        self._ended = self._begun
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def _pause(self, due: float) -> None:
        """Until a fetch is due, or is asked for and allowed."""
        waits = (asyncio.ensure_future(self._sleep(due)), asyncio.ensure_future(self._asked.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._asked.is_set():
            rest = self._looked_at + _LOOKUP_INTERVAL - self._clock()
            if rest > 0:
                await self._sleep(min(rest, _LOOKUP_INTERVAL))  # also where the clock was set back
            self._looked_at = self._clock()
            self._asked.clear()
        self._missed.clear()
