"""All instruments of one application, and the registry that they are in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from metrics.authentication import AuthenticationMetrics
from metrics.cache import CacheMetrics
from metrics.commits import CommitMetrics
from metrics.database import DatabaseMetrics
from metrics.limits import LimitMetrics
from metrics.process import ProcessMetrics
from metrics.requests import RequestMetrics
from metrics.streams import StreamMetrics


class Instruments:
    """Made once for each application, and handed to what is measured.

    Where processes share their figures (see `metrics.exposition`) there can be only one in a process: two would write
    to the same place.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        self.database = DatabaseMetrics(self.registry)
        self.commits = CommitMetrics(self.registry)
        self.cache = CacheMetrics(self.registry)
        self.streams = StreamMetrics(self.registry)
        self.authentication = AuthenticationMetrics(self.registry)
        self.limits = LimitMetrics(self.registry)
        self.process = ProcessMetrics(self.registry)
