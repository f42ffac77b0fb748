"""The settings: one table of all, read from the environment. `docs/settings.md` is made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from events.config import BusConfig, StreamConfig
from events.redis_url import parse_redis_url
from handlers.config import CONTENT_BYTES, LivesConfig, RateConfig, RequestConfig
from handlers.rate import parse_rate
from server.auth.config import LEAST_SECRET, AuthConfig
from server.auth.jwt_config import JwtConfig
from server.config import EdgeConfig, GunicornConfig, ListenConfig, LogConfig, Settings
from server.loopback import is_loopback
from server.metrics_address import parse_metrics_address
from server.networks import parse_networks
from server.origins import parse_origins
from server.setting import HOST, SWITCH, TOKEN, Kind, Setting, SettingError, number, one_of, whole
from storage.config import CommitConfig, StorageConfig
from storage.url import parse_database_url

_SECTIONS: dict[str, type[Any]] = {
    "listen": ListenConfig,
    "edge": EdgeConfig,
    "auth": AuthConfig,
    "jwt": JwtConfig,
    "lives": LivesConfig,
    "gunicorn": GunicornConfig,
    "requests": RequestConfig,
    "rates": RateConfig,
    "log": LogConfig,
    "storage": StorageConfig,
    "commit": CommitConfig,
    "stream": StreamConfig,
    "bus": BusConfig,
}
_BYTES = whole(1024, 2**40)
_SECONDS = number(0.001, 86_400)
_RATE = Kind("a rate such as `600/minute` or `10 per 5 seconds`, over a day at most, or 0", parse_rate)


def _secret(text: str) -> str:
    if len(text) < LEAST_SECRET or not (text.isascii() and text.isprintable()):
        raise ValueError  # what is not of these characters cannot be shown in a header
    return text


def _text(text: str) -> str:
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


SETTINGS = (
    Setting("HOST", "listen", "host", HOST, "The address to listen on. Anything but loopback needs credentials."),
    Setting("PORT", "listen", "port", whole(0, 65_535), "The port to listen on; 0 takes a free one."),
    Setting(
        "WEB_CONCURRENCY",
        "gunicorn",
        "workers",
        whole(1, 1_000),
        "Worker processes of gunicorn. Without it, as many as the cores that the container may use.",
    ),
    Setting(
        "SWARM_DRAIN",
        "listen",
        "drain",
        number(1, 3_600),
        "How many seconds a process that was told to end has at most. Streams end at once; requests in flight have half"
        " of it. The platform must wait a little longer before it kills.",
    ),
    Setting(
        "DATABASE_URL",
        "storage",
        "url",
        Kind("the address of a PostgreSQL or SQLite database", parse_database_url),
        "Where everything is kept: `postgresql://…` or `sqlite:///…`. An SQLite file's folder is made.",
        default="sqlite:///./var/swarm.db",
    ),
    Setting(
        "SWARM_ALLOW_UNAUTHENTICATED",
        "listen",
        "allow_unauthenticated",
        SWITCH,
        "1 lets the server listen beyond loopback without credentials: whoever reaches it reads and writes everything."
        " For a closed network, or behind a proxy that asks for credentials itself.",
    ),
    Setting(
        "SWARM_CORS_ORIGINS",
        "edge",
        "cors_origins",
        Kind("origins such as `https://app.example.com`, separated by commas", parse_origins),
        "Front ends from these origins may use the API in a browser. Others may not, and neither may any where none is"
        " listed.",
        default="",
    ),
    Setting(
        "SWARM_TRUSTED_PROXIES",
        "edge",
        "trusted_proxies",
        Kind("IP addresses or networks such as `10.0.0.0/8`, separated by commas", parse_networks),
        "Where the proxies in front are: of them, `X-Forwarded-For` and `X-Forwarded-Proto` are believed. A network in"
        " which there are clients, too, lets those say that they are others.",
        default="",
    ),
    Setting(
        "SWARM_METRICS_TOKEN",
        "edge",
        "metrics_token",
        TOKEN,
        "Who asks for `/metrics` must bring it, as `Authorization: Bearer …`. Without it everybody is shown the"
        " figures.",
    ),
    Setting(
        "SWARM_METRICS_ADDRESS",
        "edge",
        "metrics_address",
        Kind("a host and a port, such as `127.0.0.1:9100`", parse_metrics_address),
        "`/metrics` is there and not at `PORT`. All workers listen there, and each shows the figures of all.",
    ),
    Setting(
        "SWARM_BOOTSTRAP_KEY",
        "auth",
        "bootstrap_key",
        Kind(f"a secret of {LEAST_SECRET} printable ASCII characters or more", _secret),
        "The first API key: it may do everything in the tenant `default`, and make the others. Setting another one"
        " revokes it, with its sessions and tickets; keys that it has made stay.",
    ),
    Setting(
        "SWARM_REQUIRE_CREDENTIALS",
        "auth",
        "required",
        SWITCH,
        "1: nobody is served without a credential, also where none is configured here: the keys are those that"
        " `python -m server keys` has made.",
    ),
    Setting(
        "SWARM_JWT_SECRET",
        "jwt",
        "secret",
        Kind("a secret of 32 bytes or more", _text),
        "JSON Web Tokens that are signed with this secret (HS256) are credentials.",
    ),
    Setting(
        "SWARM_JWKS_URL",
        "jwt",
        "jwks_url",
        Kind("an https address", _text),
        "So are those that are signed with one of the keys that an issuer publishes there (RS256, ES256, EdDSA).",
    ),
    Setting("SWARM_JWT_ISSUER", "jwt", "issuer", Kind("a text", _text), "What `iss` must be."),
    Setting("SWARM_JWT_AUDIENCE", "jwt", "audience", Kind("a text", _text), "What `aud` must be or hold."),
    Setting(
        "SWARM_JWT_ALGORITHMS",
        "jwt",
        "algorithms",
        Kind("names of algorithms, separated by commas", _names),
        "The algorithms that are accepted, where it is not those above.",
    ),
    Setting(
        "SWARM_JWT_TENANT_CLAIM",
        "jwt",
        "tenant_claim",
        Kind("the name of a claim", _text),
        "The claim that says whose data the token's holder sees.",
    ),
    Setting(
        "SWARM_JWT_LEEWAY", "jwt", "leeway", number(0, 600), "How many seconds an issuer's clock may differ from ours."
    ),
    Setting(
        "SWARM_SESSION_LIFE",
        "lives",
        "session_life",
        number(60, 31_536_000),
        "A browser's session ends when nobody has used it for so many seconds.",
    ),
    Setting(
        "SWARM_SESSION_MOST",
        "lives",
        "session_most",
        number(60, 315_360_000),
        "It ends after so many seconds in any case.",
    ),
    Setting(
        "SWARM_TICKET_LIFE",
        "lives",
        "ticket_life",
        number(1, 86_400),
        "A ticket opens streams for so many seconds; streams that are open stay so.",
    ),
    Setting(
        "SWARM_RECHECK",
        "auth",
        "recheck",
        number(0.1, 45),
        "A credential that was good is looked at again after so many seconds, also for streams that are open: those of"
        " a revoked one end by then. With Redis they end at once.",
    ),
    Setting(
        "SWARM_MAX_BODY",
        "requests",
        "max_body",
        _BYTES,
        "The largest JSON body in bytes, which is held in memory. Imports have no limit: they are read line by line.",
    ),
    Setting(
        "SWARM_MAX_CONTENT",
        "requests",
        "max_content",
        whole(1, CONTENT_BYTES),
        "The longest text of a message: in bytes of UTF-8, and in UTF-16 code units where it comes in deltas.",
    ),
    Setting(
        "SWARM_MAX_DEPTH",
        "requests",
        "max_depth",
        whole(1, 256),
        "How deep metadata, usage, and calls of tools may be nested: readers in many languages parse by recursion, and"
        " none should be brought down by what another client posted.",
    ),
    Setting(
        "SWARM_HEAD_TIMEOUT",
        "requests",
        "head_timeout",
        _SECONDS,
        "A request's head must be here this many seconds after it began, and the first one after its connection did;"
        " else it is answered with 408 and the connection is closed.",
    ),
    Setting(
        "SWARM_BODY_TIMEOUT",
        "requests",
        "body_timeout",
        _SECONDS,
        "A JSON body must be here within this many seconds, and so must each next line of an import; else the request"
        " is answered with 408 and the connection is closed.",
    ),
    Setting(
        "SWARM_RATE_LIMIT",
        "rates",
        "requests",
        _RATE,
        "Requests of one principal to `/api` at most; one more is answered with 429, and one for a stream with `drain`."
        " A stream counts once, when it opens. With Redis all processes count together, else each for itself. 0, or"
        " nothing: no limit.",
    ),
    Setting(
        "SWARM_RATE_LIMIT_ADDRESS",
        "rates",
        "refused",
        _RATE,
        "Refused credentials from one client's address (of IPv6: one /64) at most; beyond, no credential from there is"
        " looked at for a while, and the answer is 429. 0: no limit; behind a proxy all clients have its address.",
        default="30/minute",
    ),
    Setting(
        "SWARM_LOG_LEVEL",
        "log",
        "level",
        one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "The least level that is logged. Requests are logged at INFO.",
    ),
    Setting(
        "SWARM_SLOW_OPERATION",
        "log",
        "slow_operation",
        number(0, 3_600),
        "A database operation that takes this many seconds or more is logged.",
    ),
    Setting(
        "SWARM_POOL_SIZE",
        "storage",
        "pool_size",
        whole(1, 1_000),
        "Database connections a process holds at most.",
    ),
    Setting(
        "SWARM_POOL_TIMEOUT",
        "storage",
        "pool_timeout",
        _SECONDS,
        "How many seconds a request waits for a database connection before it is answered with 503.",
    ),
    Setting(
        "SWARM_CONNECT_TIMEOUT",
        "storage",
        "connect_timeout",
        _SECONDS,
        "How many seconds connecting may take.",
    ),
    Setting(
        "SWARM_COMMAND_TIMEOUT",
        "storage",
        "command_timeout",
        _SECONDS,
        "How many seconds one statement may take.",
    ),
    Setting(
        "SWARM_PRE_PING",
        "storage",
        "pre_ping",
        SWITCH,
        "1: a connection that has rested is tried before it is used.",
    ),
    Setting(
        "SWARM_PGBOUNCER",
        "storage",
        "pgbouncer",
        SWITCH,
        "1: the database is behind pgbouncer in transaction mode, where no prepared statement can be kept.",
    ),
    Setting(
        "SWARM_CACHE_BYTES",
        "storage",
        "cache_bytes",
        whole(0, 2**40),
        "About how many bytes of windows a process keeps in memory, so that the database is only asked whether they"
        " have changed. 0: none.",
    ),
    Setting(
        "SWARM_COMMITTERS",
        "commit",
        "committers",
        whole(1, 64),
        "Transactions of appends in flight at once on PostgreSQL. SQLite has one writer.",
    ),
    Setting(
        "SWARM_COMMIT_ROWS",
        "commit",
        "group_rows",
        whole(1, 100_000),
        "Messages and events in one transaction at most: bounds how long their conversations are locked.",
    ),
    Setting(
        "SWARM_COMMIT_BYTES",
        "commit",
        "group_bytes",
        _BYTES,
        "About how many bytes one transaction writes at most.",
    ),
    Setting(
        "SWARM_QUEUE_APPENDS",
        "commit",
        "queue_appends",
        whole(1, 10_000_000),
        "Appends that wait in a process at most; beyond, they are answered with 503.",
    ),
    Setting(
        "SWARM_QUEUE_BYTES",
        "commit",
        "queue_bytes",
        _BYTES,
        "About how many bytes of appends wait in a process at most.",
    ),
    Setting(
        "SWARM_QUEUE_SECONDS",
        "commit",
        "queue_seconds",
        _SECONDS,
        "An append that has waited this long is withdrawn and answered with 503.",
    ),
    Setting(
        "SWARM_STREAM_RING",
        "stream",
        "ring_bytes",
        _BYTES,
        "Bytes of frames that are kept for each watched conversation, for readers that are a little behind.",
    ),
    Setting("SWARM_STREAM_PING", "stream", "ping", whole(1, 3_600), "Seconds between the pings of a quiet stream."),
    Setting(
        "SWARM_STREAM_SEND_TIMEOUT",
        "stream",
        "send_timeout",
        _SECONDS,
        "A reader that takes nothing for this many seconds is cut off; it can resume later.",
    ),
    Setting(
        "SWARM_STREAM_IDLE",
        "stream",
        "idle",
        _SECONDS,
        "A streaming message that has got no text for this many seconds becomes `failed`: its writer has died.",
    ),
    Setting(
        "SWARM_STREAM_RETRY",
        "stream",
        "retry",
        number(0.001, 3_600),
        "Readers that were cut are told to wait this many seconds before they come back, or up to three times that.",
    ),
    Setting(
        "SWARM_STREAMS",
        "stream",
        "streams",
        whole(1, 10_000_000),
        "Streams of this process at most; one more is answered with `drain`, and comes back a little later.",
    ),
    Setting(
        "SWARM_STREAMS_PER_ADDRESS",
        "stream",
        "streams_per_address",
        whole(0, 10_000_000),
        "The same for the streams of one client's address. 0: no limit; behind a proxy all readers have its address,"
        " unless `SWARM_TRUSTED_PROXIES` names it.",
    ),
    Setting(
        "SWARM_STREAMS_PER_PRINCIPAL",
        "stream",
        "streams_per_principal",
        whole(0, 10_000_000),
        "The same for the streams of one principal in this process. 0: no limit.",
    ),
    Setting(
        "SWARM_STREAM_LINGER",
        "stream",
        "linger",
        _SECONDS,
        "A conversation that nobody watches any more is kept in memory this many seconds, for readers that reconnect.",
    ),
    Setting(
        "SWARM_STREAM_COMPARE",
        "stream",
        "compare",
        _SECONDS,
        "Without Redis: seconds between two looks at what other processes have written to watched conversations, at"
        " most.",
    ),
    Setting(
        "REDIS_URL",
        "bus",
        "url",
        Kind("the address of a Redis server", parse_redis_url),
        "The doorbell between processes: `redis://…`, or `rediss://…` for TLS. It holds nothing that could be lost."
        " Without it processes find each other's writes in the database, a little later.",
    ),
    Setting(
        "SWARM_REDIS_CLUSTER",
        "bus",
        "cluster",
        SWITCH,
        "1: it is a Redis Cluster, and its sharded pub/sub is used.",
    ),
    Setting(
        "SWARM_REDIS_TIMEOUT",
        "bus",
        "timeout",
        _SECONDS,
        "How many seconds connecting to Redis, or one exchange with it, may take; beyond, it counts as away.",
    ),
    Setting(
        "SWARM_REDIS_COMPARE",
        "stream",
        "compare_rung",
        _SECONDS,
        "With Redis: seconds between two such looks. What Redis has lost is delivered by then.",
    ),
)


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in `environ`. A variable that is empty counts as not set. Raises `SettingError`."""
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for setting in SETTINGS:
        text = environ.get(setting.variable) or setting.default
        if text is not None:
            values[setting.section][setting.field] = setting.read(text)
    sections: dict[str, Any] = {}
    for section, make in _SECTIONS.items():
        try:
            sections[section] = make(**values[section])
        except ValueError as error:  # of what does not go together
            raise SettingError(f"{_by_variables(section, str(error))}.") from None
    loaded = Settings(**sections)
    if loaded.jwt.jwks_url is not None and loaded.jwt.audience is None:
        # An issuer signs for all of its audiences with the same keys (RFC 8725, 3.9).
        raise SettingError("SWARM_JWT_AUDIENCE must be set with SWARM_JWKS_URL, or tokens for others would open this.")
    return loaded


def _by_variables(section: str, sentence: str) -> str:
    """The sentence with variables in the place of the section's fields."""
    fields = {setting.field: setting.variable for setting in SETTINGS if setting.section == section}
    return " ".join(fields.get(word.rstrip(","), word) for word in sentence.split(" "))


def check_exposure(listen: ListenConfig, *, open: bool) -> None:  # noqa: A002 (as in `Settings`)
    """Raises `SettingError` when the server would serve everyone who reaches it, and nobody said that it should."""
    if open and not listen.allow_unauthenticated and not is_loopback(listen.host):
        raise SettingError(
            f"HOST is {listen.host}, which others can reach, and no credentials are configured, so that anyone could"
            " read and write everything: set SWARM_BOOTSTRAP_KEY, or HOST=127.0.0.1, or SWARM_ALLOW_UNAUTHENTICATED=1"
            " on a closed network."
        )


def default_text(setting: Setting) -> str:
    """The default as one would set it."""
    if setting.default is not None:
        return setting.default
    fields = {field.name: field.default for field in dataclasses.fields(_SECTIONS[setting.section])}
    value = fields[setting.field]
    if value is None or value == ():
        return ""
    return str(int(value)) if isinstance(value, bool) else f"{value}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def as_markdown() -> str:
    """`docs/settings.md`."""
    rows = [
        f"| `{setting.variable}` | {setting.kind.name} | {_code(default_text(setting))} | {setting.meaning} |"
        for setting in SETTINGS
    ]
    return "\n".join(
        (
            "# Settings",
            "",
            "All of them are environment variables. A bad value stops the start with one sentence that names it.",
            "This page is made by `python -m server settings`.",
            "",
            "| variable | what | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        )
    )
