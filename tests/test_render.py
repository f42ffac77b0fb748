"""`render.yaml`: that it says what Render understands, and that what it says starts, serves and ends."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml
from aiohttp.test_utils import make_mocked_request

from handlers.proxies import Proxies
from server import settings
from server.setting import SettingError
from tests.faults.follower import until
from tests.free_port import free_port
from tests.postgres_server import PostgresServer
from tests.server_process import ROOT
from tests.valkey_server import ValkeyServer

# Of the Blueprint's schema (https://render.com/schema/render.yaml.json): what a thing of each type must have, and what
# it may have besides.
_SHAPES = {
    "web": (
        {"type", "name", "runtime"},
        {"plan", "region", "branch", "rootDir", "buildCommand", "preDeployCommand", "startCommand", "healthCheckPath"}
        | {"maxShutdownDelaySeconds", "numInstances", "scaling", "autoDeployTrigger", "envVars", "ipAllowList"},
    ),
    "keyvalue": (
        {"type", "name", "ipAllowList"},
        {"plan", "region", "maxmemoryPolicy", "persistenceMode", "previewPlan"},
    ),
    "database": (
        {"name"},
        {"plan", "region", "postgresMajorVersion", "ipAllowList", "databaseName", "user", "diskSizeGB"},
    ),
}
_VARIABLES = ({"fromDatabase"}, {"fromService"}, {"value"}, {"generateValue"}, {"sync"})


@pytest.fixture(scope="module")
def blueprint() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "render.yaml").read_text())
    return loaded


def _service(blueprint: dict[str, Any], kind: str) -> dict[str, Any]:
    [found] = [service for service in blueprint["services"] if service["type"] == kind]
    return dict(found)


def test_each_thing_has_what_render_requires_and_nothing_that_it_does_not_know(blueprint: dict[str, Any]) -> None:
    assert set(blueprint) == {"services", "databases"}
    things = [(service["type"], service) for service in blueprint["services"]]
    things += [("database", database) for database in blueprint["databases"]]
    for kind, thing in things:
        required, allowed = _SHAPES[kind]
        assert required <= set(thing) <= required | allowed, thing["name"]
        assert all(isinstance(entry["source"], str) for entry in thing.get("ipAllowList", []))
        # "off" and "18" are other values to YAML without their quotes.
        assert all(isinstance(thing.get(key, ""), str) for key in ("persistenceMode", "postgresMajorVersion", "plan"))
    names = [thing["name"] for _, thing in things]
    assert len(set(names)) == len(names)
    assert len({thing["region"] for _, thing in things}) == 1


def test_variables_are_set_in_one_way_each_and_refer_to_what_is_in_the_file(blueprint: dict[str, Any]) -> None:
    services = {service["name"]: service["type"] for service in blueprint["services"]}
    databases = {database["name"] for database in blueprint["databases"]}
    variables = {variable["key"]: variable for variable in _service(blueprint, "web")["envVars"]}
    for variable in variables.values():
        assert set(variable) - {"key"} in _VARIABLES, variable
        if "fromDatabase" in variable:
            assert variable["fromDatabase"]["name"] in databases
            assert variable["fromDatabase"]["property"] == "connectionString"
        if "fromService" in variable:
            assert services[variable["fromService"]["name"]] == variable["fromService"]["type"]
            assert variable["fromService"]["property"] == "connectionString"
    assert {"fromDatabase"} < set(variables["DATABASE_URL"])
    assert {"fromService"} < set(variables["REDIS_URL"])


def test_no_secret_and_no_leave_to_serve_everybody_is_written_down(blueprint: dict[str, Any]) -> None:
    variables = _service(blueprint, "web")["envVars"]
    plain = {variable["key"]: str(variable["value"]) for variable in variables if "value" in variable}
    assert set(plain) == {"HOST", "WEB_CONCURRENCY", "SWARM_TRUSTED_PROXIES"}
    with pytest.raises(SettingError, match="HOST is"):
        settings.check_exposure(settings.load(plain).listen, open=True)
    generated = {variable["key"] for variable in variables if variable.get("generateValue")}
    assert generated == {"SWARM_BOOTSTRAP_KEY", "SWARM_METRICS_TOKEN"}
    assert _service(blueprint, "keyvalue")["ipAllowList"] == []
    assert blueprint["databases"][0]["ipAllowList"] == []


@pytest.mark.parametrize("said", ["{client}, 172.70.247.28", "2.2.2.2,{client}, 172.71.95.118, 10.19.64.237"])
@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7"])
def test_a_client_is_known_by_its_own_address(blueprint: dict[str, Any], said: str, address: str) -> None:
    """As a deployment was seen to send it (github.com/arcjet/arcjet-js/issues/5411); what the client says itself counts
    for nothing."""
    [value] = [
        each["value"] for each in _service(blueprint, "web")["envVars"] if each["key"] == "SWARM_TRUSTED_PROXIES"
    ]
    proxies = Proxies(settings.load({"SWARM_TRUSTED_PROXIES": value}).edge.trusted_proxies)
    request = make_mocked_request(
        "GET", "/", {"X-Forwarded-For": said.format(client=address), "X-Forwarded-Proto": "https"}
    ).clone(remote="10.21.157.68")
    assert (proxies.address(request), proxies.scheme(request)) == (address, "https")


@pytest.fixture
def empty_postgresql_url(postgres: PostgresServer) -> Iterator[str]:
    """What a database of Render's is at first."""
    postgres.create_database("render")
    yield postgres.url("render")
    postgres.drop_database("render")


def _environment(service: dict[str, Any], connections: dict[str, str], asked: dict[str, str]) -> dict[str, str]:
    """As Render makes it: `connections` is what names are replaced by, `asked` what a person has filled in."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # as in an image after its build
        "PORT": str(free_port()),
    }
    for variable in service["envVars"]:
        key = variable["key"]
        if "value" in variable:
            environment[key] = str(variable["value"])
        elif variable.get("generateValue"):
            environment[key] = "bm90IGEgc2VjcmV0LCBqdXN0IHRoZSBzaGFwZSBvZiBvbmU="
        elif "sync" in variable:
            environment[key] = asked[key]
        else:
            environment[key] = connections[(variable.get("fromDatabase") or variable["fromService"])["name"]]
    return environment


async def _run(command: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code, and all it said."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, cwd=ROOT, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:  # it serves, where it should have refused to
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_what_it_builds_is_the_lock_by_its_hashes(blueprint: dict[str, Any]) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = _service(blueprint, "web")["buildCommand"]
    assert {"--require-hashes", "--only-binary", "requirements.txt"} <= set(command.split())
    # Nothing is left to be installed here, so this asks no index: pip understands the command and the lock, and the
    # tests run with what is deployed. That each line has its hash: tests/test_requirements.py.
    code, said = await _run(f"{command} --dry-run --no-index --disable-pip-version-check", environment)
    assert code == 0, said
    assert "Would install" not in said


async def test_what_it_says_is_deployed_serves_with_four_workers_and_ends_in_order(
    blueprint: dict[str, Any], empty_postgresql_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    service = _service(blueprint, "web")
    connections = {"swarm-database": empty_postgresql_url, "swarm-doorbell": valkey.url}
    environment = _environment(service, connections, {})
    origin = f"http://127.0.0.1:{environment['PORT']}"

    # Without a key it does not start: nobody serves everybody by mistake.
    code, said = await _run(service["startCommand"], environment | {"SWARM_BOOTSTRAP_KEY": ""})
    assert (code, said.startswith("HOST is 0.0.0.0")) == (1, True), said

    code, said = await _run(f"{service['startCommand']} --print-config", environment)
    assert code == 0, said
    [patience] = re.findall(r"^graceful_timeout += (\d+)$", said, re.MULTILINE)
    assert service["maxShutdownDelaySeconds"] > int(patience) > settings.load(environment).listen.drain

    code, said = await _run(service["preDeployCommand"], environment)
    assert (code, "is up to date" in said) == (0, True), said

    with _started(service["startCommand"], environment, tmp_path / "log") as process:
        master = psutil.Process(process.pid)
        async with aiohttp.ClientSession(origin, connector=aiohttp.TCPConnector(force_close=True)) as session:

            async def status(path: str) -> int:
                try:
                    async with session.get(path) as answer:
                        return answer.status
                except aiohttp.ClientError:
                    return 0

            async with asyncio.timeout(60):
                while await status(service["healthCheckPath"]) != 200:
                    await asyncio.sleep(0.05)
            await until(lambda: len(master.children()) == 4, "four workers")
            # Of any worker, so that each has a word in it.
            async with asyncio.timeout(60):
                for _ in range(20):
                    while await status("/health") != 200:
                        await asyncio.sleep(0.05)
            async with session.get("/health") as answer:
                assert (await answer.json())["status"] == "healthy"
            async with session.post("/api/conversations", json={}) as answer:
                assert answer.status == 401
            headers = {"Authorization": f"Bearer {environment['SWARM_BOOTSTRAP_KEY']}"}
            async with session.post("/api/conversations", json={}, headers=headers) as answer:
                assert answer.status == 201
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, service["maxShutdownDelaySeconds"]) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("Worker exiting") == 4, said
    assert "Traceback" not in said
    assert "SIGKILL" not in said


@contextmanager
def _started(command: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Killed in the end, with its workers, if it still runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            master = psutil.Process(process.pid)
            for left in [*master.children(recursive=True), master]:
                left.kill()
            process.wait(10)
