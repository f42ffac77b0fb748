"""What the process itself needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from events.config import BusConfig, StreamConfig
from handlers.config import LivesConfig, Network, RateConfig, RequestConfig
from server.auth.config import AuthConfig
from server.auth.jwt_config import JwtConfig
from server.metrics_address import MetricsAddress
from storage.config import CommitConfig, StorageConfig


@dataclass(frozen=True)
class ListenConfig:
    host: str = "127.0.0.1"
    port: int = 8080
    allow_unauthenticated: bool = False
    drain: float = 20.0  # seconds from the signal to the end of the process


@dataclass(frozen=True)
class EdgeConfig:
    """Who may see what, before anybody has said who they are."""

    cors_origins: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()
    metrics_token: str | None = field(default=None, repr=False)
    metrics_address: MetricsAddress | None = None  # None: the public one


@dataclass(frozen=True)
class GunicornConfig:
    workers: int | None = None  # None: as many as there are cores


@dataclass(frozen=True)
class LogConfig:
    level: str = "INFO"
    slow_operation: float = 1.0


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, each package's part in the shape that the package defines."""

    listen: ListenConfig
    edge: EdgeConfig
    auth: AuthConfig
    jwt: JwtConfig
    lives: LivesConfig
    gunicorn: GunicornConfig
    requests: RequestConfig
    rates: RateConfig
    log: LogConfig
    storage: StorageConfig
    commit: CommitConfig
    stream: StreamConfig
    bus: BusConfig

    @property
    def open(self) -> bool:
        """Whether whoever comes without a credential is served."""
        return not (self.auth.bootstrap_key is not None or self.auth.required or self.jwt.configured)
