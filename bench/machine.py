"""The machine: which cores the server and the load have, and what else used them meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psutil

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))

# One core is the server's; everything else, the databases included, has the others.
SERVER_CORE = _CORES[:1]
LOAD_CORES = _CORES[1:] or _CORES
ALL_CORES = _CORES


def pinned(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command on those cores; as it is where the system cannot pin."""
    taskset = shutil.which("taskset")
    if taskset is None:
        return list(command)
    return [taskset, "--cpu-list", ",".join(map(str, cores)), *command]


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """What these have used so far, user and system."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@dataclass
class Watch:
    """What of the machine's busy time between two looks was not ours: `stop` tells it in cores.

    `ours` are the processes that belong to the measurement, each with all that it has started.
    """

    ours: list[psutil.Process]
    _busy: float = field(init=False)
    _own: float = field(init=False)
    _begun: float = field(init=False)

    def __post_init__(self) -> None:
        self._begun, self._busy, self._own = time.monotonic(), _busy(), cpu_seconds(self._tree())

    def stop(self, clients: float) -> float:
        """Cores used by others on average; `clients` are CPU seconds of processes that have ended meanwhile."""
        seconds = time.monotonic() - self._begun
        others = _busy() - self._busy - (cpu_seconds(self._tree()) - self._own) - clients
        return max(0.0, others / seconds) if seconds > 0 else 0.0

    def _tree(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self.ours:
            try:
                found += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found


def _busy() -> float:
    times = psutil.cpu_times()
    steal: float = getattr(times, "steal", 0.0)
    return float(times.user + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0) + steal)
