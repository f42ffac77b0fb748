"""The README's tour, pasted."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8080"


def _tour() -> str:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [tour] = [block for block in blocks if "curl" in block]
    return str(tour)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour needs curl: apt-get install curl")
def test_the_tour_works_when_pasted(tmp_path: Path) -> None:
    environment = {**os.environ, "PORT": "0", "DATABASE_URL": f"sqlite:///{tmp_path}/swarm.db"}
    server = subprocess.Popen(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        shell = subprocess.run(
            ["bash", "-c", _tour().replace(ADDRESS, address)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    output = shell.stdout
    # Live, in the answers to the posts, and replayed from after the first.
    assert output.count('"content":"Who is there?"') == 2, output + shell.stderr
    assert output.count('"content":"A swarm."') == 3, output
    assert output.count("event: ready") == 2
    assert '"accepted":5000' in output
    assert '"content":"line 2498"' in output
    assert '"total":5002' in output
