"""The application as it is served: on connections of ours, which answer what goes wrong."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import TestServer

from server.connection import Runner


class Served(TestServer):
    """A test server of aiohttp's that runs the application as the programs do."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app)
