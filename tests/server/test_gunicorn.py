"""gunicorn with our configuration: real masters and workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.deployment import ROOT, Deployment
from tests.faults.follower import caught_up, follow, stop_all, until
from tests.free_port import free_port


def _session(deployment: Deployment) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(deployment.origin, connector=aiohttp.TCPConnector(force_close=True))


async def _conversation(session: aiohttp.ClientSession) -> str:
    async with session.post("/api/conversations", json={}) as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["id"])


async def test_four_workers_share_one_sqlite_file_and_lose_nothing(sqlite_url: str) -> None:
    async with Deployment(sqlite_url, workers=4) as deployment, _session(deployment) as session:
        assert len(deployment.worker_processes()) == 4
        conversation_id = await _conversation(session)
        readers = await follow(deployment.port, conversation_id, 12)
        path = f"/api/conversations/{conversation_id}/messages"

        async def post(text: str) -> dict[str, Any]:
            async with session.post(path, json={"role": "user", "content": text}) as answer:
                assert answer.status == 201, await answer.text()
                made: dict[str, Any] = await answer.json()
                return made

        made = await asyncio.gather(*(post(str(number)) for number in range(200)))
        assert sorted(message["position"] for message in made) == list(range(1, 201))
        await caught_up(readers, 200)
        # Any worker reads at once what any other has acknowledged.
        for number in range(20):
            message = await post(f"another {number}")
            async with session.get(f"{path}?from={message['position']}&limit=1") as answer:
                assert (await answer.json())["items"] == [message]
        assert await deployment.metric("swarm_streams_open") == 12
        assert await deployment.metric("http_server_request_duration_seconds_count") >= 240
        await stop_all(readers)
        code, _ = await deployment.end()
    assert code == 0


async def test_a_request_in_flight_ends_and_a_stream_is_told_to_come_back(sqlite_url: str) -> None:
    async with Deployment(sqlite_url, workers=1) as deployment, _session(deployment) as session:
        conversation_id = await _conversation(session)
        [reader] = await follow(deployment.port, conversation_id, 1)
        begun, rest = asyncio.Event(), asyncio.Event()

        async def lines() -> Any:
            yield b'{"role": "user", "content": "first"}\n'
            begun.set()
            await rest.wait()
            yield b'{"role": "user", "content": "last"}\n'

        headers = {"Content-Type": "application/x-ndjson"}
        importing = asyncio.create_task(
            session.post(
                f"/api/conversations/{conversation_id}/messages",
                data=lines(),
                headers=headers,
                expect100=True,  # so the body is asked for when the request is in flight
            )
        )
        await begun.wait()
        ending = asyncio.create_task(deployment.end())
        await until(lambda: reader.ended_by_drain == 1, "the stream ends")
        await until(lambda: reader.refusals, "nobody listens any more")
        assert not ending.done()
        rest.set()
        async with await importing as answer:
            assert (await answer.json())["accepted"] == 2
        code, _ = await ending
        await stop_all([reader])
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
async def test_a_second_signal_hurries(sqlite_url: str, number: signal.Signals) -> None:
    async with Deployment(sqlite_url, workers=2, SWARM_DRAIN="60") as deployment, _session(deployment) as session:
        conversation_id = await _conversation(session)

        async def lines() -> Any:
            yield b'{"role": "user", "content": "first"}\n'
            await asyncio.Event().wait()

        headers = {"Content-Type": "application/x-ndjson"}
        importing = asyncio.create_task(
            session.post(f"/api/conversations/{conversation_id}/messages", data=lines(), headers=headers)
        )
        [reader] = await follow(deployment.port, conversation_id, 1)
        await until(lambda: reader.seq or not importing.done(), "the import begins")
        deployment.master.send_signal(signal.SIGTERM)
        await until(lambda: reader.ended_by_drain, "the stream ends")
        code, _ = await deployment.end(number)
        said = deployment.said()
        importing.cancel()
        await stop_all([reader])
    assert code == 0
    assert "SIGKILL" not in said


async def test_a_worker_that_dies_is_replaced_and_its_gauges_go_with_it(sqlite_url: str) -> None:
    async with Deployment(sqlite_url, workers=1) as deployment, _session(deployment) as session:
        conversation_id = await _conversation(session)
        readers = await follow(deployment.port, conversation_id, 5)
        before = await deployment.metric("http_server_request_duration_seconds_count")
        assert await deployment.metric("swarm_streams_open") == 5
        await stop_all(readers)
        [worker] = deployment.worker_processes()
        worker.send_signal(signal.SIGKILL)
        await until(lambda: [w.pid for w in deployment.worker_processes()] not in ([], [worker.pid]), "another worker")
        await deployment.healthy()
        assert await deployment.metric("swarm_streams_open") == 0
        assert await deployment.metric("http_server_request_duration_seconds_count") >= before


async def _answers(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health/live") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def test_it_boots_without_its_database_and_serves_when_that_comes(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    place.touch()  # a file, where the database's folder should be
    deployment = Deployment(f"sqlite:///{place}/swarm.db", workers=2)
    await deployment.start(healthy=False)
    try:
        async with _session(deployment) as session:

            async def asked(path: str) -> tuple[int, Any]:
                async with session.get(path) as answer:
                    return answer.status, await answer.json()

            await until(lambda: "database not ready" in deployment.said(), "it says so")
            async with asyncio.timeout(30):
                while not await _answers(session):
                    await asyncio.sleep(0.05)
            status, health = await asked("/health")
            assert (status, health["status"]) == (503, "unhealthy")
            assert (await asked("/health/live"))[0] == 200
            assert await asked("/health/ready") == (503, {"status": "starting"})
            status, problem = await asked("/api/conversations")
            assert (status, problem["status"]) == (503, 503)
        place.unlink()
        assert (await deployment.healthy())["status"] == "healthy"
    finally:
        await deployment.close()


async def test_nobody_is_refused_while_its_workers_open_the_database(sqlite_url: str) -> None:
    deployment = Deployment(sqlite_url, workers=2)
    try:
        await deployment.start(healthy=False)
        async with _session(deployment) as session:
            await until(lambda: _is_open(deployment.port), "it listens")
            for _ in range(50):
                async with session.get("/api/conversations") as answer:
                    assert answer.status == 200, await answer.text()
    finally:
        await deployment.close()


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def _refusal(folder: Path, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gunicorn", "--config", "server/gunicorn_conf.py",
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{folder}/swarm.db", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:  # it serves, which it should not
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode().strip()


async def test_a_bad_setting_stops_it_with_one_sentence(tmp_path: Path) -> None:
    assert await _refusal(tmp_path, SWARM_DRAIN="long") == (1, "SWARM_DRAIN must be a number from 1 to 3600.")


async def test_it_refuses_to_serve_everybody_unless_told_to(tmp_path: Path) -> None:
    code, said = await _refusal(tmp_path, HOST="0.0.0.0", PORT=str(free_port()))
    assert code == 1
    assert said.startswith("HOST is 0.0.0.0, which others can reach")
    assert "\n" not in said


@pytest.mark.parametrize(
    "arguments", ["--bind 0.0.0.0:{port}", "--bind [::]:{port}", "--bind 0.0.0.0:{port} --reuse-port"]
)
async def test_what_it_is_made_to_listen_on_counts_as_much_as_host_does(tmp_path: Path, arguments: str) -> None:
    code, said = await _refusal(tmp_path, GUNICORN_CMD_ARGS=arguments.format(port=free_port()))
    [sentence] = [line for line in said.splitlines() if not line.startswith("{")]
    assert (code, "which others can reach" in sentence) == (1, True), said
    assert "Booting worker" not in said


async def test_a_folder_for_figures_that_cannot_be_used_stops_it_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        code, said = await _refusal(tmp_path, PORT=str(free_port()), PROMETHEUS_MULTIPROC_DIR=str(folder))
        sentences = [line for line in said.splitlines() if not line.startswith("{")]
        assert (code, len(sentences)) == (1, 1), said
        assert sentences[0].startswith("PROMETHEUS_MULTIPROC_DIR cannot be used: ")


async def test_of_a_folder_that_an_operator_names_only_old_figures_are_removed(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "gauge_liveall_1.db").touch()
    (folder / "mine").touch()
    async with Deployment(sqlite_url, workers=1, PROMETHEUS_MULTIPROC_DIR=str(folder)) as deployment:
        assert not (folder / "gauge_liveall_1.db").exists()
        assert list(folder.glob("*.db"))
        code, _ = await deployment.end()
    assert code == 0
    assert (folder / "mine").exists()


async def test_the_number_of_workers_is_that_of_the_cores_unless_said(sqlite_url: str) -> None:
    from server.cores import available_cores

    deployment = Deployment(sqlite_url, workers=available_cores())
    del deployment._environment["WEB_CONCURRENCY"]
    async with deployment:
        assert len(deployment.worker_processes()) == available_cores()
