"""Many processes show one whole: what they counted stays when they die, what they held goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import mark_process_dead

from metrics.exposition import SHARED_FOLDER, Exposition
from metrics.instruments import Instruments
from tests.figures import Figures
from tests.metrics.promtool import check

ROOT = Path(__file__).parents[2]

Start = Callable[[int, int], subprocess.Popen[bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "figures"
    made.mkdir()
    return made


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, SHARED_FOLDER: str(folder)}


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a process that has answered so many requests and holds so many streams when this returns."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(requests: int, streams: int) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.metrics.child", str(requests), str(streams)],
            cwd=ROOT,
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"counted\n"
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate(timeout=20)


def _shown(folder: Path) -> str:
    """What a process shows that has joined them, as gunicorn's next worker would."""
    shower = subprocess.run(
        [sys.executable, "-m", "tests.metrics.shower"],
        cwd=ROOT,
        env=_environment(folder),
        capture_output=True,
        check=True,
        timeout=60,
    )
    return shower.stdout.decode()


def _kill(child: subprocess.Popen[bytes], folder: Path) -> None:
    """As gunicorn's arbiter meets it: the process is gone without a word, then it is marked as dead."""
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=20)
    mark_process_dead(child.pid, str(folder))  # type: ignore[no-untyped-call]


def test_what_the_processes_counted_adds_up(folder: Path, start: Start) -> None:
    start(3, 1)
    start(4, 2)
    figures = Figures.of(_shown(folder))
    duration = "http_server_request_duration_seconds"
    assert figures.get(f"{duration}_count", http_route="/api/agents") == 7
    assert figures.get(f"{duration}_bucket", http_route="/api/agents", le="0.005") == 7
    assert figures.get(f"{duration}_bucket", http_route="/api/agents", le="0.0025") == 0
    assert figures.get("swarm_events_delivered_total", source="live") == 70
    assert figures.get("swarm_streams_open", kind="conversation") == 3
    assert figures.get("db_client_connections_max") == 10
    failed = {"db_operation_name": "messages.get", "error_type": "TimeoutError"}
    assert figures.get("db_client_operation_failures_total", **failed) == 2


def test_a_killed_process_leaves_its_counts_and_takes_its_gauges(folder: Path, start: Start) -> None:
    doomed, other = start(3, 5), start(4, 2)
    before = Figures.of(_shown(folder))
    _kill(doomed, folder)
    after = Figures.of(_shown(folder))
    assert after.get("swarm_streams_open", kind="conversation") == 2
    assert after.get("db_client_connections_max") == 5
    _assert_never_fallen(before, after)
    start(1, 1)  # as gunicorn does in its place
    last = Figures.of(_shown(folder))
    assert last.get("http_server_request_duration_seconds_count", http_route="/api/agents") == 8
    _assert_never_fallen(after, last)
    _kill(other, folder)
    _assert_never_fallen(last, Figures.of(_shown(folder)))


def _assert_never_fallen(before: Figures, after: Figures) -> None:
    compared = 0
    for (name, labels), value in before.samples.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after.samples.get((name, labels), 0) >= value, (name, labels)
            compared += 1
    assert compared > 20


def test_no_gauge_is_kept_for_a_process_that_was_marked_as_dead(folder: Path, start: Start) -> None:
    _kill(start(1, 1), folder)
    assert [file.name for file in folder.iterdir() if file.name.startswith("gauge")] == []


def test_a_file_whose_process_died_as_it_made_it_hides_no_other(folder: Path, start: Start) -> None:
    start(3, 1)
    (folder / "histogram_1.db").touch()
    assert Figures.of(_shown(folder)).get("swarm_streams_open", kind="conversation") == 1


def test_promtool_finds_nothing_in_what_many_processes_show(folder: Path, start: Start) -> None:
    start(3, 1)
    start(4, 2)
    check(_shown(folder))


def test_when_a_series_was_made_is_not_shown() -> None:
    instruments = Instruments()
    instruments.requests.answered("GET", "/api/agents", 200, 0.003)
    for accept in ("", "application/openmetrics-text;version=1.0.0"):
        assert b"_created" not in Exposition(instruments.registry, None).render(accept)[0]


def test_a_folder_that_the_library_does_not_know_of_is_refused(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=SHARED_FOLDER):
        Exposition(CollectorRegistry(), folder)


def test_two_applications_of_one_process_have_figures_of_their_own() -> None:
    one, other = Instruments(), Instruments()
    one.streams.opened("conversation")
    text, _ = Exposition(other.registry, None).render("")
    assert Figures.of(text.decode()).get("swarm_streams_open", kind="conversation") == 0
