"""The pulse takes the figures that nobody reports, and outlives one that cannot be had."""

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from metrics.process import ProcessMetrics
from metrics.pulse import Pulse


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def _beats(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("swarm_event_loop_lag_seconds_count") or 0.0


async def test_a_gauge_is_what_its_function_gives_at_once_and_then_again_and_again() -> None:
    registry = CollectorRegistry()
    readings = iter(range(1, 1_000))
    pulse = Pulse(
        ProcessMetrics(registry), [(Gauge("g", "of a test", registry=registry), lambda: next(readings))], 0.01
    )
    await pulse.start()
    assert registry.get_sample_value("g") == 1
    await _until(lambda: (registry.get_sample_value("g") or 0) > 3)
    await pulse.close()


async def test_a_figure_that_cannot_be_taken_stops_no_other_beat() -> None:
    registry = CollectorRegistry()
    broken = False

    def read() -> float:
        if broken:
            raise ValueError("gone")
        return 0.0

    pulse = Pulse(ProcessMetrics(registry), [(Gauge("g", "of a test", registry=registry), read)], 0.01)
    await pulse.start()
    with capture_logs() as lines:
        broken = True
        await _until(lambda: lines)
        beats = _beats(registry)
        await _until(lambda: _beats(registry) > beats + 1)
    await pulse.close()
    assert lines[0]["event"] == "figures were not taken"


async def test_it_ends_when_it_is_closed() -> None:
    registry = CollectorRegistry()
    pulse = Pulse(ProcessMetrics(registry), [], 0.001)
    await pulse.start()
    await _until(lambda: _beats(registry))
    await pulse.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "pulse"]
