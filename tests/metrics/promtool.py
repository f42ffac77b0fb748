"""`promtool check metrics`, where it is installed."""

import os
import shutil
import subprocess

import pytest

HOW_TO_GET_IT = "promtool is not installed; on Debian and Ubuntu, apt-get install prometheus brings it"


def check(text: str) -> None:
    """Asserts that it finds nothing to say; skips where it is missing, unless it has to be there (CI)."""
    promtool = shutil.which("promtool")
    if promtool is None and os.environ.get("SWARM_REQUIRE_CLIENTS") == "1":
        pytest.fail(HOW_TO_GET_IT)
    if promtool is None:
        pytest.skip(HOW_TO_GET_IT)
    ran = subprocess.run(
        [promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
