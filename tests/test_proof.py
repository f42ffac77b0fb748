"""Proofs take their counts from the environment, and their figures make a table."""

import pytest

from tests import proof


@pytest.fixture(autouse=True)
def _no_figures_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_figures", [])


def test_counts_are_reduced_unless_proofs_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_PROOF", raising=False)
    assert proof.count(10, full=10_000) == 10
    monkeypatch.setenv("SWARM_PROOF", "1")
    assert proof.count(10, full=10_000) == 10_000


def test_chance_can_be_repeated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SWARM_SEED", "17")
    assert proof.seed() == 17
    monkeypatch.delenv("SWARM_SEED")
    assert f"SWARM_SEED={proof.seed()} " in capsys.readouterr().out


def test_times_are_judged_at_full_counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_PROOF", raising=False)
    proof.within(3.0, 2.0, "all streams are back")
    monkeypatch.setenv("SWARM_PROOF", "1")
    proof.within(2.0, 2.0, "all streams are back")
    with pytest.raises(AssertionError, match=r"all streams are back: 3.00, 2 at most"):
        proof.within(3.0, 2.0, "all streams are back")


def test_without_figures_there_is_no_table() -> None:
    assert proof.table() == ""


def test_figures_make_a_markdown_table() -> None:
    proof.record("a window costs the same", "SQLite", "1.9 ms", "at 10 | at 10,000,000")
    proof.record("commits", "PostgreSQL", 17)
    assert proof.table().splitlines() == [
        "| proof                   | database   | figure | note                   |",
        "| ----------------------- | ---------- | ------ | ---------------------- |",
        "| a window costs the same | SQLite     | 1.9 ms | at 10 \\| at 10,000,000 |",
        "| commits                 | PostgreSQL | 17     |                        |",
    ]


def test_figures_of_another_process_are_gathered() -> None:
    proof.record("commits", "PostgreSQL", 17)
    sent = proof.figures()
    proof.gather(sent)
    assert proof.figures() == [*sent, *sent] == [("commits", "PostgreSQL", "17", "")] * 2
