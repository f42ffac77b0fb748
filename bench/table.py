"""What a measurement found, beside what was asked of it: printed as a table, and kept as JSON."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Row:
    """One goal of one measurement: `met` is None where nothing was asked for. `raw` are the single rounds' figures."""

    work: str
    found: str
    goal: str = ""
    met: bool | None = None
    note: str = ""
    raw: dict[str, Any] = field(default_factory=dict)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """The median, and between which two it lies: `12.3 (11.0–14.9) ms`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    text = f"{middle:,.{digits}f}"
    if len(values) > 1:
        text += f" ({low:,.{digits}f}–{high:,.{digits}f})"
    return f"{text} {unit}".rstrip()


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round: what disturbs the machine meets both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def disturbed(others: Sequence[float]) -> str:
    """A note where something else used the machine."""
    worst = max(others, default=0.0)
    return f"others used up to {worst:.2f} cores" if worst > 0.15 else ""


def as_markdown(rows: Iterable[Row]) -> str:
    lines = ["| work | found | goal | met | note |", "| --- | --- | --- | --- | --- |"]
    marks = {True: "yes", False: "**no**", None: ""}
    lines += [f"| {row.work} | {row.found} | {row.goal} | {marks[row.met]} | {row.note} |" for row in rows]
    return "\n".join(lines)


def save(rows: Sequence[Row], path: Path) -> None:
    """The rows with the single rounds behind them, and where they were measured."""
    path.write_text(
        json.dumps(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": {
                    "system": platform.platform(),
                    "python": platform.python_version(),
                    "cores": psutil.cpu_count(),
                },
                "rows": [asdict(row) for row in rows],
            },
            indent=1,
        )
        + "\n"
    )
