"""A new epoch after a restore: another than before, and known to whoever asks the database."""

import asyncio
import re

import pytest

from storage import migrate, timeline
from storage.config import StorageConfig
from storage.timeline import new_epoch, random_epoch
from storage.url import parse_database_url
from tests.storage.store import TENANT, opened


def _config(url: str) -> StorageConfig:
    return StorageConfig(parse_database_url(url))


def test_a_new_epoch_is_another_than_all_before(database_url: str) -> None:
    config = _config(database_url)
    epochs = [migrate.upgrade(config)]
    for _ in range(5):
        epochs.append(new_epoch(config))
        assert migrate.upgrade(config) == epochs[-1]
    assert len(set(epochs)) == 6


def test_an_epoch_can_stand_in_an_id() -> None:
    epochs = {random_epoch() for _ in range(1_000)}
    assert len(epochs) > 990
    assert all(re.fullmatch(r"[a-z2-9]{6}", epoch) for epoch in epochs)


def test_the_epoch_that_is_over_is_not_drawn_again(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(database_url)
    drawn = [migrate.upgrade(config), "another"]
    monkeypatch.setattr(timeline, "random_epoch", lambda: drawn.pop(0))
    assert new_epoch(config) == "another"


def test_a_backup_of_an_older_version_is_brought_up_to_date(empty_database_url: str) -> None:
    config = _config(empty_database_url)
    migrate.move(config, "0001")
    epoch = new_epoch(config)
    assert migrate.upgrade(config) == epoch


async def test_a_running_process_learns_of_it_when_it_asks(database_url: str) -> None:
    async with opened(database_url) as store:
        conversation = await store.conversation()
        await store.post(conversation, "text")
        old = store.database.epoch
        epoch = await asyncio.to_thread(new_epoch, store.database.config)
        assert store.database.epoch == old != epoch
        assert await store.database.refresh_epoch() == store.database.epoch == epoch
        page = await store.log.page(TENANT, conversation, 0, limit=10, budget=1_000)
        assert (page.epoch, len(page.events)) == (epoch, 1)
