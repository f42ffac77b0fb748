"""`python -m tests.soak [minutes]`: Swarm as it is deployed, under steady load; what grows?

Readers come and go, messages are posted, edited and deleted, windows are read. The open descriptors, threads, tasks and
memory of all workers are looked at; each must be as flat in the last third as in the second.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time

from storage import migrate
from storage.config import StorageConfig
from storage.url import parse_database_url
from tests.faults.deployment import Deployment
from tests.faults.follower import Follower, follow, stop_all
from tests.faults.load import Load, loaded
from tests.postgres_server import PostgresServer
from tests.valkey_server import ValkeyServer

_STREAMS = 200
_RATE = 50.0
_PAUSE = 5.0  # seconds between two looks
# How much more the last third may have than the second: what comes and goes at any moment.
_TOLERANCE = {"descriptors": 1.1, "threads": 1.0, "tasks": 1.3, "memory": 1.05}

Look = dict[str, float]


async def _look(deployment: Deployment) -> Look:
    workers = deployment.worker_processes()
    return {
        "descriptors": sum(worker.num_fds() for worker in workers),
        "threads": sum(worker.num_threads() for worker in workers),
        "tasks": await deployment.metric("swarm_event_loop_tasks"),
        "memory": sum(worker.memory_info().rss for worker in workers) / 2**20,
    }


async def _come_and_go(deployment: Deployment, load: Load, stop: asyncio.Event) -> int:
    """Short-lived readers, in the middle of the log and at its end. Returns how many there were."""
    count = 0
    while not stop.is_set():
        followers: list[Follower] = await follow(deployment.port, random.choice(load.ids), 5)
        count += len(followers)
        await asyncio.sleep(random.uniform(0, 0.5))
        await stop_all(followers)
    return count


async def _read_and_change(load: Load, stop: asyncio.Event) -> int:
    """Windows, edits and deletions of what was posted by others than the writers. Returns how many requests."""
    count = 0
    while not stop.is_set():
        path = f"/api/conversations/{random.choice(load.ids)}/messages"
        async with load.session.get(f"{path}?limit=50") as answer:
            assert answer.status == 200
        body = {"role": "user", "content": f"mine {count} {time.time_ns()}"}
        async with load.session.post(path, json=body) as answer:
            made = await answer.json()
        async with load.session.patch(f"/api/messages/{made['id']}", json={"content": f"edited {count}"}) as answer:
            assert answer.status == 200
        async with load.session.delete(f"/api/messages/{made['id']}") as answer:
            assert answer.status == 204
        count += 4
        await asyncio.sleep(0.05)
    return count


async def soak(minutes: float) -> bool:
    """Whether all stayed flat."""
    looks: list[Look] = []
    with PostgresServer() as postgres, ValkeyServer() as valkey:
        await asyncio.to_thread(postgres.create_database, "soak")
        url = postgres.url("soak")
        await asyncio.to_thread(migrate.upgrade, StorageConfig(parse_database_url(url)))
        async with (
            Deployment(url, valkey.url) as deployment,
            loaded(deployment.port, _STREAMS, _RATE, unique=False) as load,
        ):
            stop = asyncio.Event()
            others = [
                asyncio.create_task(_come_and_go(deployment, load, stop)),
                asyncio.create_task(_read_and_change(load, stop)),
            ]
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                await asyncio.sleep(_PAUSE)
                for task in others:
                    if task.done():
                        task.result()
                looks.append(await _look(deployment))
            stop.set()
            readers, requests = await asyncio.gather(*others)
    print(f"{minutes:g} minutes: {load.acknowledged} messages to {_STREAMS} streams, {readers} readers that came and")
    print(f"went, {requests} other requests; every event once, in order, for each; 0 acknowledged lost")
    return _flat(looks)


def _flat(looks: list[Look]) -> bool:
    third = len(looks) // 3
    parts = looks[:third], looks[third : 2 * third], looks[2 * third :]
    print(f"{'medians':12} {'first third':>12} {'second':>12} {'last':>12}")
    flat = True
    for name, tolerance in _TOLERANCE.items():
        first, second, last = (statistics.median(look[name] for look in part) for part in parts)
        grown = last > second * tolerance
        flat &= not grown
        print(f"{name:12} {first:12.1f} {second:12.1f} {last:12.1f} {'GROWS' if grown else 'flat'}")
    return flat


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    return 0 if asyncio.run(soak(minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
