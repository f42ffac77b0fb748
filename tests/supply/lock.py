"""A lock as `make lock` writes it, read strictly: a line that it would not write is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[a-z0-9.]+)(?: ; (?P<marker>[^;\\]+))? \\")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")
_VIA = re.compile(r"    # via (.+)")


class BadLine(ValueError):
    """A line that is neither a requirement, nor a hash, nor a comment. The message has file, number and text."""


@dataclass
class Locked:
    """One package: `needed_by` are packages of the lock, or `-r` and `-c` with the file that asks for it."""

    name: str
    version: str
    marker: str | None
    hashes: list[str] = field(default_factory=list)
    needed_by: list[str] = field(default_factory=list)


def read_lock(path: Path) -> list[Locked]:
    """All packages of the lock at `path`, in its order. Raises `BadLine`."""
    packages: list[Locked] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := _REQUIREMENT.fullmatch(line):
            packages.append(Locked(found["name"], found["version"], found["marker"]))
        elif packages and (found := _HASH.fullmatch(line)):
            packages[-1].hashes.append(found[1])
        elif packages and (found := _VIA.fullmatch(line)):
            packages[-1].needed_by += found[1].split(", ")
        elif line and not line.startswith("#"):
            raise BadLine(f"{path}:{number}: {line}")
    return packages
