"""`python -m tests.supply.audit [arguments of pip-audit]`: are there known vulnerabilities in what production installs?

Exits with 0 if every package of the lock was looked up and none is known to be vulnerable, with 1 if one is, and with 3
if not all could be looked up. pip-audit itself takes a package of which its service knows nothing for a good one, and
an index without that service (a mirror) knows nothing of any.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.supply.lock import read_lock

_LOCK = Path("requirements.txt")

CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3


def verdict(report: str, locked: set[str]) -> tuple[int, list[str]]:
    """The exit code, and what to say, of pip-audit's JSON `report` (empty if it made none) on the packages `locked`."""
    found: list[dict[str, Any]] = json.loads(report)["dependencies"] if report.strip() else []
    audited = {dependency["name"] for dependency in found if "skip_reason" not in dependency}
    said = [
        f"{dependency['name']} {dependency['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for dependency in found
        for vulnerability in dependency.get("vulns", [])
    ]
    code = VULNERABLE if said else CLEAN
    if missing := sorted(locked - audited):
        which = ", ".join(missing) if audited else "all of them"
        said.append(f"NOT AUDITED: {len(missing)} of {len(locked)} packages could not be looked up: {which}.")
        code = code or NOT_AUDITED
    elif not said:
        said.append(f"No known vulnerabilities in {len(locked)} packages.")
    return code, said


def main(arguments: list[str]) -> int:
    """The exit code, after everything was printed."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as everywhere:
        # Also what only other systems and Pythons install: pip-audit leaves out what a marker keeps from this one.
        everywhere.write(re.sub(r"(?m)^(\S+) ; .*$", r"\1 \\", _LOCK.read_text()))
        everywhere.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", everywhere.name, "--require-hashes"]
        command += ["--disable-pip", "--progress-spinner", "off", "--format", "json", *arguments]
        made = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    code, said = verdict(made.stdout, {package.name for package in read_lock(_LOCK)})
    print("\n".join(said))
    if code == NOT_AUDITED:
        if not made.stdout.strip():
            print(f"pip-audit ended with: {made.stderr.strip().rpartition(chr(10))[2]}")
        print("If its service (the package index's own, or another: --vulnerability-service osv) did not answer, or")
        print("has no such data, run it where it can be reached. This says nothing of the packages. Exit code 3.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
