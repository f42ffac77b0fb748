"""The limit of open descriptors is raised as far as the operator allows."""

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from server import descriptors


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The process's limits, which are as they were when the test has ended."""
    known = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield known
    resource.setrlimit(resource.RLIMIT_NOFILE, known)


def test_the_soft_limit_becomes_the_hard_one_and_the_log_says_so(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    with capture_logs() as lines:
        descriptors.raise_limit()
        descriptors.raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    [line] = lines
    assert (line["log_level"], line["soft"], line["hard"]) == ("info", 512, hard)


def test_a_system_that_does_not_allow_it_is_no_reason_not_to_start(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(resource, "setrlimit", refuse)
        descriptors.raise_limit()
    assert [line["log_level"] for line in lines] == ["warning"]
