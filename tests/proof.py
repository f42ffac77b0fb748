"""Proofs: tests whose counts `make proof` raises to what a claim needs, and the figures they found.

A test marked `proof` runs in `make test` too, with its reduced count.
"""

import os
import random
from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, on which database, and what came out."""

    name: str
    database: str
    figure: str
    note: str


_figures: list[Figure] = []


def is_full() -> bool:
    """Whether the counts are the full ones (SWARM_PROOF=1)."""
    return os.environ.get("SWARM_PROOF") == "1"


def count(reduced: int, full: int) -> int:
    """Returns how often to do it: `full` under `make proof`, else `reduced`."""
    return full if is_full() else reduced


def seed() -> int:
    """Returns what chance is to come from: SWARM_SEED, or a new one. Printed, so that a failure shows it."""
    chosen = int(os.environ.get("SWARM_SEED") or random.randrange(2**32))
    print(f"SWARM_SEED={chosen} repeats what was drawn here.")
    return chosen


def within(found: float, most: float, what: str) -> None:
    """Fails where a time is longer than is promised: at full counts alone, for beside other tests it says nothing."""
    assert not is_full() or found <= most, f"{what}: {found:.2f}, {most:g} at most"


def record(name: str, database: str, figure: object, note: str = "") -> None:
    """Adds a line to the table printed when the tests end; `figure` says its unit ("1.9 ms")."""
    _figures.append(Figure(name, database, str(figure), note))


def figures() -> list[tuple[str, str, str, str]]:
    """What was recorded in this process, to be sent to another one."""
    return [astuple(figure) for figure in _figures]


def gather(found: Iterable[Iterable[str]]) -> None:
    """Adds what was recorded in another process."""
    _figures.extend(Figure(*figure) for figure in found)


def table() -> str:
    """Returns the recorded figures as a Markdown table, or "" when there are none."""
    if not _figures:
        return ""
    rows = [("proof", "database", "figure", "note")]
    rows += [(f.name, f.database, f.figure, f.note) for f in _figures]
    # A bar or a line break in a cell would end it.
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * max(width, 3) for width in widths) + " |")
    return "\n".join(lines)
