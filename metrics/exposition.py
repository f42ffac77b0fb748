"""What `/metrics` shows: the figures of this process, or of all processes that share them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

# Of the library's own: it reads the variable when it is imported, and keeps every figure in files of this folder.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def shared_folder() -> Path | None:
    """Where the processes of one server leave their figures for each other, if they do."""
    name = os.environ.get(SHARED_FOLDER)
    return Path(name) if name else None


class Exposition:
    """Renders the figures of `registry`; with a `folder`, those of all processes that share it.

    Raises `RuntimeError` when the library does not know of the folder: it would stay empty, and no figure ever change.
    """

    def __init__(self, registry: CollectorRegistry, folder: Path | None) -> None:
        if folder is not None and values.ValueClass is values.MutexValue:
            raise RuntimeError(f"{SHARED_FOLDER} must be set before prometheus_client is imported")
        self._shown = CollectorRegistry()
        self._shown.register(_Timeless(registry if folder is None else _Shared(folder)))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text, and its media type: OpenMetrics where `accept`, a request's header, asks for it.

        Reads files, and takes milliseconds: not to be called from an event loop.
        """
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # it compares what stands for a version with numbers
            encode, media_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return encode(self._shown), media_type


class _Shared(Collector):
    """The figures of all processes, the dead ones' counters too, for those must never fall."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A file is empty for a moment when it is made, and for good when its process was killed in that moment: the
        # library would stumble over it.
        files = [str(file) for file in self._folder.glob("*.db") if _size(file)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # a gauge of a process that has just been found dead
        return 0


class _Timeless(Collector):
    """Leaves out when each series was made: another series beside each, and not known of shared ones anyway."""

    def __init__(self, inner: Collector) -> None:
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
