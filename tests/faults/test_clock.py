"""The wall clock jumps under the server, an hour each way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import proof
from tests.faults.follower import follow, stop_all, until
from tests.faults.load import loaded
from tests.server_process import ServerProcess
from tests.valkey_server import ValkeyServer

pytestmark = pytest.mark.fault


def _library() -> Path:
    """What fakes the time of a process; skips where it is missing, unless it has to be there (CI)."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        missing = "faketime is not installed: on Debian and Ubuntu, run: apt-get install faketime"
        if os.environ.get("SWARM_REQUIRE_CLIENTS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found[0]


@pytest.mark.timeout(300)
async def test_a_wall_clock_that_jumps_changes_neither_order_nor_pings(
    postgresql_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    faked = {
        "LD_PRELOAD": str(_library()),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",  # no machine's does jump
    }
    # gunicorn's master cannot be faked: it sleeps by a call that the library gets wrong.
    settings: dict[str, Any] = {"REDIS_URL": valkey.url, "SWARM_STREAM_PING": "1", "SWARM_STREAM_RETRY": "0.2", **faked}
    servers = [ServerProcess(postgresql_url, **settings) for _ in range(2)]
    times = proof.count(1, 5)
    try:
        for server in servers:
            await server.start()
        async with loaded(servers[0].port, 20, 50) as load:
            elsewhere = await follow(servers[1].port, load.ids[0], 20)
            followers = [*load.followers, *elsewhere]
            for _ in range(times):
                for jump in ("+3600", "-3600", "+0"):
                    offset.write_text(f"{jump}\n")
                    pings = [follower.pings for follower in followers]
                    await load.goes_on(50)
                    await until(
                        lambda: all(f.pings > before for f, before in zip(followers, pings, strict=True)),  # noqa: B023
                        "pings",
                    )
            assert all(follower.connections == 1 for follower in followers), "no stream was closed"
            assert not [fault for follower in elsewhere for fault in follower.faults]
            await until(lambda: all(f.seq >= load.followers[0].seq for f in elsewhere), "the others' readers, too")
            await stop_all(elsewhere)
    finally:
        for server in servers:
            await server.end(signal.SIGTERM)
    proof.record(
        "the wall clock jumps an hour each way",
        "postgresql",
        f"{times * 3} jumps under 40 streams and 50 messages/s, no stream closed, all pinged",
        load.told,
    )
