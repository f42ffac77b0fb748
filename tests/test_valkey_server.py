"""The Valkey server that other tests use."""

import psutil
import pytest
import redis

from tests.valkey_server import ValkeyServer


def test_it_is_real_keeps_its_port_and_comes_back_empty() -> None:
    with ValkeyServer() as server:
        with server.client() as client:
            assert client.info("server")["server_name"] == "valkey"
            client.set("key", "value")
        server.kill()
        with server.client() as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        with server.client() as client:
            assert client.get("key") is None


def test_it_does_not_run_as_root() -> None:
    with ValkeyServer() as server, server.client() as client:
        pid = client.info("server")["process_id"]
        assert psutil.Process(pid).uids().real != 0


def test_one_that_is_suspended_answers_later() -> None:
    with ValkeyServer() as server:
        server.suspend()
        with (
            redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client,
            pytest.raises(redis.TimeoutError),
        ):
            client.ping()
        server.resume()
        with server.client() as client:
            assert client.ping()


def test_a_cluster_of_one_has_all_slots() -> None:
    with ValkeyServer(cluster=True) as server, redis.RedisCluster.from_url(server.url) as client:
        assert client.spublish("channel", "message") == 0
