"""The memory that the process takes."""

from __future__ import annotations

import contextlib
import os


class ResidentMemory:
    """Reads it from where Linux tells it, which no disk is asked for; elsewhere it is not known."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> int | None:
        """In bytes."""
        if self._file is None:
            return None
        return int(os.pread(self._file, 128, 0).split()[1]) * self._page  # proc_pid_statm(5): size, resident, …

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
